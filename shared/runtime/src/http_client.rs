//! Requests to a daemon, over its Unix socket or over mutual TLS: JSON both ways, or a stream
//! of any length as the body. One connection per request; every wait has a limit.
//!
//! Errors tell apart what a caller decides by: [`ClientError::Unreachable`] is the only one
//! after which the request certainly had no effect.

mod error;
mod transport;
mod upload;

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rehome_shared::ids::HostAddr;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::tls::Tls;
use transport::Endpoint;

pub use error::ClientError;
pub(crate) use transport::tune;
pub use upload::StreamLimits;

/// The most that an answer may hold: a list of 10,000 connections fits several times.
const ANSWER_LIMIT: usize = 16 << 20;

/// How long a connect and a handshake may take, within the request's own deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Speaks to one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HttpClient {
    endpoint: Endpoint,
    connect_timeout: Duration,
    answer_limit: usize,
}

impl HttpClient {
    /// Of the daemon behind a Unix socket.
    #[must_use]
    pub fn unix(path: &Path) -> Self {
        Self::new(Endpoint::Unix(path.to_owned()))
    }

    /// Of the daemon of a host, which must prove that it is that host.
    #[must_use]
    pub fn tls(host: &HostAddr, port: u16, tls: &Tls) -> Self {
        Self::new(Endpoint::Tls {
            host: host.clone(),
            port,
            tls: tls.clone(),
        })
    }

    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            connect_timeout: CONNECT_TIMEOUT,
            answer_limit: ANSWER_LIMIT,
        }
    }

    /// Sets how long a connect may take (default 5 s).
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how many bytes an answer may hold (default 16 MiB).
    #[must_use]
    pub fn with_answer_limit(mut self, bytes: usize) -> Self {
        self.answer_limit = bytes;
        self
    }

    /// Sends a value (or nothing) as JSON and reads the answer as JSON, all within `deadline`.
    /// An empty answer reads as `null`, so `()` takes it.
    ///
    /// # Errors
    /// [`ClientError`]; an answer that is not a success is [`ClientError::Status`].
    ///
    /// # Cancel safety
    /// A dropped call may have had its effect.
    pub async fn request_json<Req, Res>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Req>,
        deadline: Duration,
    ) -> Result<Res, ClientError>
    where
        Req: Serialize + ?Sized + Sync,
        Res: DeserializeOwned,
    {
        let mut headers = HeaderMap::new();
        let bytes = match body {
            None => Bytes::new(),
            Some(value) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                serde_json::to_vec(value)
                    .map_err(ClientError::Encode)?
                    .into()
            }
        };
        let full = Full::new(bytes)
            .map_err(|never| match never {})
            .boxed_unsync();
        let request = self.build(method, path, headers, full)?;
        let answer = tokio::time::timeout(deadline, self.exchange(request))
            .await
            .map_err(|_| self.timeout(deadline, "no answer came"))??;
        self.decode(&answer)
    }

    /// Sends a stream as the body of a PUT, as fast as the other side takes it, and reads the
    /// answer as JSON.
    ///
    /// # Errors
    /// [`ClientError`]; a body that breaks off is [`ClientError::Source`], and the other side
    /// sees an incomplete body.
    ///
    /// # Cancel safety
    /// A dropped call breaks the stream off; the other side sees an incomplete body.
    pub async fn put_stream<S, Res>(
        &self,
        path: &str,
        headers: HeaderMap,
        body: S,
        limits: StreamLimits,
    ) -> Result<Res, ClientError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
        Res: DeserializeOwned,
    {
        let (body, progress) = upload::body(body);
        let request = self.build(Method::PUT, path, headers, body)?;
        // Both arms are cancel safe in this sense: whichever loses is given up for good. The
        // exchange comes first: what goes on once this machine runs it again did not stall.
        let answer = tokio::select! {
            biased;
            answer = self.exchange(request) => answer?,
            stall = upload::stalled(&progress, limits) => {
                return Err(self.timeout(stall.limit, stall.what));
            }
        };
        self.decode(&answer)
    }

    fn build(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Request<Body>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.endpoint.authority())
            .body(body)
            .map_err(ClientError::Request)?;
        request.headers_mut().extend(headers);
        Ok(request)
    }

    /// Connects, sends, and reads the whole answer.
    async fn exchange(&self, request: Request<Body>) -> Result<Response<Bytes>, ClientError> {
        let stream = match tokio::time::timeout(self.connect_timeout, self.endpoint.connect()).await
        {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(self.unreachable(source)),
            Err(elapsed) => return Err(self.unreachable(elapsed.into())),
        };
        self.converse(stream, request).await
    }

    async fn converse(
        &self,
        stream: transport::Stream,
        request: Request<Body>,
    ) -> Result<Response<Bytes>, ClientError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(e))?;
        let exchange = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|e| self.broken(e))?;
            self.collect(answer).await
        };
        let mut exchange = std::pin::pin!(exchange);
        // The connection does the reading and writing, so it runs beside the exchange; when it
        // ends first, what it has received is still in the exchange's hands.
        tokio::select! {
            answer = &mut exchange => return answer,
            _end = connection => {}
        }
        exchange.await
    }

    async fn collect(&self, answer: Response<Incoming>) -> Result<Response<Bytes>, ClientError> {
        let (parts, mut body) = answer.into_parts();
        let mut collected = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|e| self.broken(e))?.into_data() else {
                continue;
            };
            if collected.len().saturating_add(data.len()) > self.answer_limit {
                return Err(ClientError::TooLong {
                    endpoint: self.endpoint.to_string(),
                    limit: self.answer_limit,
                });
            }
            collected.extend_from_slice(&data);
        }
        Ok(Response::from_parts(parts, collected.freeze()))
    }

    fn decode<Res: DeserializeOwned>(&self, answer: &Response<Bytes>) -> Result<Res, ClientError> {
        let (status, body) = (answer.status(), answer.body());
        if !status.is_success() {
            let endpoint = self.endpoint.to_string();
            return Err(ClientError::Status {
                endpoint,
                status,
                reply: error::reply_of(body),
            });
        }
        let json: &[u8] = if body.is_empty() { b"null" } else { body };
        serde_json::from_slice(json).map_err(|source| ClientError::BadAnswer {
            endpoint: self.endpoint.to_string(),
            source,
        })
    }

    fn unreachable(&self, source: std::io::Error) -> ClientError {
        ClientError::Unreachable {
            endpoint: self.endpoint.to_string(),
            source,
        }
    }

    fn timeout(&self, limit: Duration, what: &'static str) -> ClientError {
        ClientError::Timeout {
            endpoint: self.endpoint.to_string(),
            limit,
            what,
        }
    }

    /// An error of the body's source is not an error of the connection.
    fn broken(&self, source: hyper::Error) -> ClientError {
        let endpoint = self.endpoint.to_string();
        if source.is_user() {
            ClientError::Source { endpoint, source }
        } else {
            ClientError::Broken { endpoint, source }
        }
    }
}

#[cfg(test)]
mod tests;
