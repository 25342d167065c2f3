//! A request in flight: from the boundary before it to the one after its response.
//!
//! ```text
//!   request   head, body ─► whole
//!   response  interim heads ─► head ─► body ─► whole
//!   both whole, and both sides mean to go on: the next boundary
//! ```

use super::body::{Body, Eaten, Progress};
use super::head::{Asks, HEAD_CAP, Head, Reply, Request, response};

/// A request in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    asks: Asks,
    /// What is left of the request.
    head: usize,
    body: Body,
    asked: Progress,
    answer: Answer,
    goes_on: bool,
}

/// How far the response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Head,
    Body(Body),
    Whole,
}

/// What becomes of bytes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Taken {
    /// So many of them can be passed on. Show the others again, with what comes after them.
    pub bytes: usize,
    /// What is next.
    pub then: Then,
}

/// What is next after bytes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// More of it.
    More,
    /// It is whole.
    Whole,
    /// All that comes is passed on as it is, from here on and for good: a tunnel, or nothing that
    /// is understood.
    Plain,
}

/// What follows a response that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The next request.
    Boundary,
    /// The end of the connection, or something that is not understood.
    End,
}

impl Flight {
    /// A request whose head has this length, itself included in the bytes that are shown.
    #[must_use]
    pub fn new(length: usize, request: &Request) -> Self {
        Self {
            asks: request.asks,
            head: length,
            body: request.body,
            asked: Progress::More,
            answer: Answer::Head,
            goes_on: request.goes_on,
        }
    }

    /// Takes what belongs to the request off the begin of what the client sent. Once it is whole,
    /// nothing does.
    pub fn ask(&mut self, bytes: &[u8]) -> Eaten {
        if self.asked != Progress::More {
            return Eaten {
                bytes: 0,
                progress: self.asked,
            };
        }
        let of_head = self.head.min(bytes.len());
        self.head = self.head.saturating_sub(of_head);
        if self.head > 0 {
            return Eaten {
                bytes: of_head,
                progress: Progress::More,
            };
        }
        let of_body = self.body.eat(bytes.get(of_head..).unwrap_or_default());
        self.asked = of_body.progress;
        Eaten {
            bytes: of_head.saturating_add(of_body.bytes),
            progress: self.asked,
        }
    }

    /// Whether the request is whole.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked == Progress::Whole
    }

    /// Takes what belongs to the response off the begin of what the application sent.
    pub fn answer(&mut self, bytes: &[u8]) -> Taken {
        let mut taken = 0_usize;
        loop {
            let rest = bytes.get(taken..).unwrap_or_default();
            let step = match &mut self.answer {
                Answer::Head if rest.is_empty() => Taken {
                    bytes: 0,
                    then: Then::More,
                },
                Answer::Head => match self.answer_head(rest) {
                    Step::Go(length) => {
                        taken = taken.saturating_add(length);
                        continue;
                    }
                    Step::Stop(taken) => taken,
                },
                Answer::Body(body) => {
                    let eaten = body.eat(rest);
                    let then = match eaten.progress {
                        Progress::More => Then::More,
                        Progress::Whole => {
                            self.answer = Answer::Whole;
                            Then::Whole
                        }
                        Progress::Foreign => Then::Plain,
                    };
                    Taken {
                        bytes: eaten.bytes,
                        then,
                    }
                }
                Answer::Whole => Taken {
                    bytes: 0,
                    then: Then::Whole,
                },
            };
            return Taken {
                bytes: taken.saturating_add(step.bytes),
                then: step.then,
            };
        }
    }

    fn answer_head(&mut self, bytes: &[u8]) -> Step {
        let stop = |bytes, then| Step::Stop(Taken { bytes, then });
        // What does not fit is not waited for.
        let bytes = bytes.get(..HEAD_CAP).unwrap_or(bytes);
        match response(bytes, self.asks) {
            Head::Partial => stop(0, Then::More),
            Head::Foreign => stop(0, Then::Plain),
            Head::Whole { length, head } => match head {
                Reply::Interim => Step::Go(length),
                Reply::Tunnel => stop(length, Then::Plain),
                Reply::Final { body, goes_on } => {
                    self.goes_on &= goes_on;
                    self.answer = Answer::Body(body);
                    Step::Go(length)
                }
            },
        }
    }

    /// The application has finished. True, when that is the end of its response.
    pub fn end(&mut self) -> bool {
        match self.answer {
            Answer::Body(Body::UntilEnd) | Answer::Whole => {
                self.answer = Answer::Whole;
                true
            }
            Answer::Head | Answer::Body(Body::Length(_) | Body::Chunked(_)) => false,
        }
    }

    /// What follows the response.
    #[must_use]
    pub fn after(&self) -> After {
        if self.goes_on && self.is_asked() {
            After::Boundary
        } else {
            After::End
        }
    }
}

/// What became of a head.
enum Step {
    /// It is this long, and something follows.
    Go(usize),
    Stop(Taken),
}
