//! What clients and server say: a line for a question, a line for its answer.
//!
//! | question | answers |
//! |---|---|
//! | `append CLIENT SEQUENCE` | `at PLACE`, `gap LAST`, `not REASON` |
//! | `read` | `is LENGTH DIGEST` |
//! | `dump` | `is LENGTH DIGEST`, then a line `CLIENT SEQUENCE` for each record |

use std::fmt;
use std::str::{FromStr, SplitWhitespace};

use super::{Digest, Record};

/// No line is longer.
pub const LINE: u64 = 512;

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Append this record, unless it is there already.
    Append(Record),
    /// How long is the log, and what is it?
    Read,
    /// All of it.
    Dump,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The record is on the disk, at this place.
    At(u64),
    /// The client's last record here is another one than the predecessor of what it sends.
    Gap(u64),
    /// It was not done; the log is as it was.
    Not(String),
    /// The log has so many records and is this.
    Is(u64, Digest),
}

/// A line that is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not understood: {0:?}")]
pub struct Garbled(String);

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append(record) => write!(f, "append {} {}", record.client, record.sequence),
            Self::Read => f.write_str("read"),
            Self::Dump => f.write_str("dump"),
        }
    }
}

impl FromStr for Question {
    type Err = Garbled;

    fn from_str(line: &str) -> Result<Self, Garbled> {
        let mut words = line.split_whitespace();
        let question = match words.next() {
            Some("append") => record(&mut words).map(Self::Append),
            Some("read") => Some(Self::Read),
            Some("dump") => Some(Self::Dump),
            _ => None,
        };
        let whole = question.filter(|_| words.next().is_none());
        whole.ok_or_else(|| Garbled(line.to_owned()))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(index) => write!(f, "at {index}"),
            Self::Gap(last) => write!(f, "gap {last}"),
            Self::Not(reason) => write!(f, "not {}", reason.replace('\n', " ")),
            Self::Is(length, digest) => write!(f, "is {length} {digest}"),
        }
    }
}

impl FromStr for Answer {
    type Err = Garbled;

    fn from_str(line: &str) -> Result<Self, Garbled> {
        let answer = match line.trim_end().split_once(' ') {
            Some(("at", index)) => index.parse().ok().map(Self::At),
            Some(("gap", last)) => last.parse().ok().map(Self::Gap),
            Some(("not", reason)) => Some(Self::Not(reason.to_owned())),
            Some(("is", rest)) => rest.split_once(' ').and_then(|(length, digest)| {
                Some(Self::Is(length.parse().ok()?, digest.parse().ok()?))
            }),
            _ => None,
        };
        answer.ok_or_else(|| Garbled(line.to_owned()))
    }
}

/// The line of a record in a dump.
///
/// # Errors
/// When it is none.
pub fn dumped(line: &str) -> Result<Record, Garbled> {
    record(&mut line.split_whitespace()).ok_or_else(|| Garbled(line.to_owned()))
}

fn record(words: &mut SplitWhitespace<'_>) -> Option<Record> {
    Some(Record {
        client: words.next()?.parse().ok()?,
        sequence: words.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_read_back() {
        let record = Record {
            client: 4,
            sequence: 9,
        };
        for question in [Question::Append(record), Question::Read, Question::Dump] {
            assert_eq!(question.to_string().parse(), Ok(question));
        }
        let answers = [
            Answer::At(12),
            Answer::Gap(3),
            Answer::Not("the disk is full".to_owned()),
            Answer::Is(5, Digest::default().then(0, record)),
        ];
        for answer in answers {
            assert_eq!(answer.to_string().parse(), Ok(answer));
        }
    }

    #[test]
    fn what_is_cut_short_is_no_answer() {
        for line in ["", "at", "at ", "is 5", "is 5 00ff", "append 1", "read it"] {
            assert!(line.parse::<Answer>().is_err(), "{line:?}");
            assert!(line.parse::<Question>().is_err(), "{line:?}");
        }
    }
}
