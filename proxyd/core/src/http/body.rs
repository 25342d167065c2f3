//! How far the body of a message goes.

/// The body of a message, as far as it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes are left; none: it is whole.
    Length(u64),
    /// Chunks, each with its length.
    Chunked(Chunks),
    /// Everything until the end of the connection.
    UntilEnd,
}

/// What became of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Eaten {
    /// So many of them belong to the body.
    pub bytes: usize,
    /// How far it is.
    pub progress: Progress,
}

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is more to come.
    More,
    /// It is whole.
    Whole,
    /// It is not what it should be.
    Foreign,
}

/// Where in chunks the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// In the length of a chunk, of which so many digits have come.
    Size {
        /// Its value so far.
        value: u64,
        /// Its digits so far.
        digits: u8,
    },
    /// Between the length and the end of its line.
    Extension {
        /// The length.
        value: u64,
    },
    /// At the line feed after a length.
    SizeEnd {
        /// The length.
        value: u64,
    },
    /// In a chunk of which so much is left.
    Data(u64),
    /// At the carriage return after a chunk.
    DataReturn,
    /// At the line feed after a chunk.
    DataEnd,
    /// At the begin of a line after the last chunk.
    Trailer,
    /// In such a line.
    TrailerLine,
    /// At the line feed of such a line.
    TrailerEnd,
    /// At the line feed of the empty line that ends all.
    LastEnd,
}

/// More digits than a length has.
const DIGITS: u8 = 16;

impl Body {
    /// A body that is whole before it begins.
    pub const NONE: Self = Self::Length(0);

    /// A body of chunks.
    #[must_use]
    pub const fn chunked() -> Self {
        Self::Chunked(Chunks::Size {
            value: 0,
            digits: 0,
        })
    }

    /// Whether nothing belongs to it.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Takes what belongs to it off the begin of these bytes.
    pub fn eat(&mut self, bytes: &[u8]) -> Eaten {
        match self {
            Self::Length(left) => {
                let (eaten, rest) = part_of(*left, bytes);
                *left = rest;
                let progress = if rest == 0 {
                    Progress::Whole
                } else {
                    Progress::More
                };
                Eaten {
                    bytes: eaten,
                    progress,
                }
            }
            Self::Chunked(chunks) => chunks.eat(bytes),
            Self::UntilEnd => Eaten {
                bytes: bytes.len(),
                progress: Progress::More,
            },
        }
    }
}

/// How many of these bytes are of so many that are left, and how many are left then.
fn part_of(left: u64, bytes: &[u8]) -> (usize, u64) {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let part = left.min(length);
    // Not more than the length of the bytes.
    let eaten = usize::try_from(part).unwrap_or(bytes.len());
    (eaten, left.saturating_sub(part))
}

impl Chunks {
    fn eat(&mut self, bytes: &[u8]) -> Eaten {
        let mut eaten = 0;
        loop {
            let rest = bytes.get(eaten..).unwrap_or_default();
            if let Self::Data(left) = self {
                let (part, more) = part_of(*left, rest);
                eaten = eaten.saturating_add(part);
                *self = if more == 0 {
                    Self::DataReturn
                } else {
                    Self::Data(more)
                };
                if more > 0 {
                    break;
                }
                continue;
            }
            let Some(byte) = rest.first() else { break };
            let progress = match self.after(*byte) {
                Next::At(next) => {
                    *self = next;
                    eaten = eaten.saturating_add(1);
                    continue;
                }
                Next::Last => {
                    eaten = eaten.saturating_add(1);
                    Progress::Whole
                }
                Next::Foreign => Progress::Foreign,
            };
            return Eaten {
                bytes: eaten,
                progress,
            };
        }
        Eaten {
            bytes: eaten,
            progress: Progress::More,
        }
    }

    /// Where the byte after this one is.
    fn after(self, byte: u8) -> Next {
        Next::At(match (self, byte) {
            (Self::Size { value, digits }, _) => return after_size(value, digits, byte),
            (Self::Extension { value }, b'\r') => Self::SizeEnd { value },
            (Self::SizeEnd { value: 0 } | Self::TrailerEnd, b'\n') => Self::Trailer,
            (Self::SizeEnd { value }, b'\n') => Self::Data(value),
            (Self::DataReturn, b'\r') => Self::DataEnd,
            (Self::DataEnd, b'\n') => Self::Size {
                value: 0,
                digits: 0,
            },
            (Self::Trailer, b'\r') => Self::LastEnd,
            (Self::TrailerLine, b'\r') => Self::TrailerEnd,
            (Self::LastEnd, b'\n') => return Next::Last,
            // A line feed by itself is the end of a line for some and not for others.
            (Self::Extension { .. } | Self::Trailer | Self::TrailerLine, b'\n')
            | (
                Self::SizeEnd { .. }
                | Self::Data(_)
                | Self::DataReturn
                | Self::DataEnd
                | Self::TrailerEnd
                | Self::LastEnd,
                _,
            ) => return Next::Foreign,
            (Self::Extension { .. }, _) => self,
            (Self::Trailer | Self::TrailerLine, _) => Self::TrailerLine,
        })
    }
}

/// What the byte after one is.
enum Next {
    /// One at this place.
    At(Chunks),
    /// None: this was the last one.
    Last,
    /// Nothing that is understood: this one must not be here.
    Foreign,
}

fn after_size(value: u64, digits: u8, byte: u8) -> Next {
    match (char::from(byte).to_digit(16), byte) {
        (Some(digit), _) if digits < DIGITS => Next::At(Chunks::Size {
            value: (value << 4) | u64::from(digit),
            digits: digits.saturating_add(1),
        }),
        (None, b'\r') if digits > 0 => Next::At(Chunks::SizeEnd { value }),
        (None, b';' | b' ' | b'\t') if digits > 0 => Next::At(Chunks::Extension { value }),
        (_, _) => Next::Foreign,
    }
}
