//! One connection, from the TLS handshake to the lingering close.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::tls::{IdentityError, PeerIdentity, Tls};

/// After an answer that did not read its request's whole body, what the client still sends is
/// read and dropped until it is silent for so long: closing at once would reset the connection, and
/// the reset could overtake the answer.
const LINGER: Duration = Duration::from_secs(2);
/// However long it goes on.
const LINGER_AT_MOST: Duration = Duration::from_secs(10);

type Answer = Pin<Box<dyn Future<Output = Result<Response, std::convert::Infallible>> + Send>>;

pub(super) struct Connection {
    pub(super) router: Router,
    pub(super) header_timeout: Duration,
    pub(super) stop: CancellationToken,
}

impl Connection {
    /// Serves after a handshake in which the client proved its identity.
    pub(super) async fn serve_tls(self, stream: TcpStream, tls: &Tls) {
        let handshake = TlsAcceptor::from(tls.server()).accept(stream);
        let stream = match tokio::time::timeout(self.header_timeout, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(%error, "tls handshake refused");
                return;
            }
            Err(_) => {
                tracing::debug!("tls handshake timed out");
                return;
            }
        };
        let certificates = stream.get_ref().1.peer_certificates();
        let identity = certificates
            .and_then(|chain| chain.first())
            .ok_or(IdentityError::NoCertificate)
            .and_then(PeerIdentity::of_certificate);
        match identity {
            Ok(identity) => self.serve(stream, Some(identity)).await,
            Err(error) => tracing::warn!(%error, "a peer without identity was refused"),
        }
    }

    /// Serves requests until the client or the program ends.
    pub(super) async fn serve<S>(self, stream: S, peer: Option<PeerIdentity>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router;
        let service = service_fn(move |mut request: Request<Incoming>| -> Answer {
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            Box::pin(router.clone().oneshot(request))
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .serve_connection(TokioIo::new(stream), service);
        let mut stopping = false;
        let end = loop {
            // Both arms are cancel safe: polling the connection keeps its state in it.
            tokio::select! {
                end = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break end,
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        match end {
            Ok(()) => linger(connection.into_parts().io.into_inner()).await,
            Err(error) => tracing::debug!(%error, "a control connection broke"),
        }
    }
}

/// Says "no more" and waits until the client has read that, for a bounded time.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let closing = async {
        stream.shutdown().await?;
        let mut dropped = vec![0; 16 * 1024];
        while tokio::time::timeout(LINGER, stream.read(&mut dropped)).await?? > 0 {}
        std::io::Result::Ok(())
    };
    // A client that resets, or is silent, or goes on for longer, has had its chance.
    let _end = tokio::time::timeout(LINGER_AT_MOST, closing).await;
}
