//! The messages and their bytes.

use std::collections::BTreeMap;

use rehome_shared::ids::AppName;
use serde::{Deserialize, Serialize};

use super::part::PartId;

/// The newest form of the protocol that this version speaks.
pub const PROTOCOL: u32 = 1;
/// The oldest one that it still speaks.
pub const OLDEST: u32 = 1;

/// Everything that is said. JSON; fields are added with defaults, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Who speaks; the successor begins.
    Hello(Hello),
    /// Parts, whose records and descriptors travel beside the message.
    Batch(Batch),
    /// The successor holds the parts of the last batch, but for those that it refuses.
    Ack {
        /// The parts that it cannot take.
        #[serde(default)]
        refused: Vec<Refusal>,
    },
    /// The successor has all that it needs to be built.
    Equipped,
    /// It is built, and would accept.
    Ready,
    /// It cannot go on.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// The predecessor has stopped accepting: the successor accepts from now on.
    Go,
    /// The predecessor does not touch these any more: they are the successor's.
    Release {
        /// Which.
        ids: Vec<PartId>,
    },
    /// There is nothing more.
    End(End),
    /// The successor has everything and serves alone.
    Serving,
}

/// How each side begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest form of the protocol that it speaks.
    pub protocol: u32,
    /// The oldest one.
    pub oldest: u32,
    /// The program's version, for people.
    pub version: String,
    /// The newest form of a kept table that it reads and writes; it does all the older ones too.
    pub table: u32,
    /// What its configuration says of the sockets that change hands, by the key of each.
    #[serde(default)]
    pub sockets: BTreeMap<String, String>,
    /// Whether it knows what the kernel may carry, and takes it over.
    #[serde(default)]
    pub fast_path: bool,
}

/// What both sides can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The form of the protocol.
    pub protocol: u32,
    /// The form of the table.
    pub table: u32,
    /// Whether both know what the kernel may carry.
    pub fast_path: bool,
}

/// Two sides that cannot do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    /// Too far apart.
    #[error("version {theirs} does not speak the same protocol as version {own}")]
    Protocol {
        /// This side's version.
        own: String,
        /// The other one's.
        theirs: String,
    },
    /// The sockets would have to be others.
    #[error(
        "{key} is {theirs:?} in its configuration and {own:?} in the running one's: a change of it needs a restart"
    )]
    Socket {
        /// The key.
        key: String,
        /// This side's value.
        own: String,
        /// The other one's.
        theirs: String,
    },
}

impl Hello {
    /// What both can do.
    ///
    /// # Errors
    /// [`Disagreement`].
    pub fn agree(&self, theirs: &Self) -> Result<Terms, Disagreement> {
        let protocol = self.protocol.min(theirs.protocol);
        if protocol < self.oldest.max(theirs.oldest) {
            return Err(Disagreement::Protocol {
                own: self.version.clone(),
                theirs: theirs.version.clone(),
            });
        }
        // A key that only one side knows is a newer side's, which means its default.
        for (key, own) in &self.sockets {
            if let Some(theirs) = theirs.sockets.get(key)
                && theirs != own
            {
                return Err(Disagreement::Socket {
                    key: key.clone(),
                    own: own.clone(),
                    theirs: theirs.clone(),
                });
            }
        }
        Ok(Terms {
            protocol,
            table: self.table.min(theirs.table),
            fast_path: self.fast_path && theirs.fast_path,
        })
    }
}

/// What travels beside a batch: a file with the records and then the bytes, as the first
/// descriptor, and then those of the parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The parts, in order.
    pub ids: Vec<PartId>,
    /// How long the records are.
    pub records: u64,
    /// How many bytes follow them.
    pub bytes: u64,
}

/// A part that a successor cannot take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which.
    pub id: PartId,
    /// Why, for people.
    pub reason: String,
}

/// What is left with the predecessor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct End {
    /// The applications whose connections it still passes on, until its side of the socket closes.
    #[serde(default)]
    pub left: Vec<AppName>,
}

/// A message that cannot be understood, or that does not fit here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Not one of this protocol.
    #[error("a message that is none: {0}")]
    NotAMessage(String),
    /// It does not belong here.
    #[error("the word {what} does not belong {stage}")]
    OutOfTurn {
        /// What came or was to be done.
        what: &'static str,
        /// When.
        stage: &'static str,
    },
    /// The sides do not fit.
    #[error(transparent)]
    Disagreement(#[from] Disagreement),
    /// The successor said that it cannot go on.
    #[error("the successor gave up: {0}")]
    GaveUp(String),
    /// The successor cannot be built without this part.
    #[error("the successor refused part {id}: {reason}")]
    Refused {
        /// Which.
        id: PartId,
        /// Why.
        reason: String,
    },
    /// The other side speaks of a part that it was not asked about.
    #[error("part {0} is not under way")]
    Unknown(PartId),
}

impl Message {
    /// Its word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Batch(_) => "batch",
            Self::Ack { .. } => "ack",
            Self::Equipped => "equipped",
            Self::Ready => "ready",
            Self::Failed { .. } => "failed",
            Self::Go => "go",
            Self::Release { .. } => "release",
            Self::End(_) => "end",
            Self::Serving => "serving",
        }
    }
}

/// The bytes of a message.
///
/// # Errors
/// [`Broken::NotAMessage`]; it does not happen.
pub fn encode(message: &Message) -> Result<Vec<u8>, Broken> {
    serde_json::to_vec(message).map_err(|error| Broken::NotAMessage(error.to_string()))
}

/// The message of these bytes.
///
/// # Errors
/// [`Broken::NotAMessage`].
pub fn decode(bytes: &[u8]) -> Result<Message, Broken> {
    serde_json::from_slice(bytes).map_err(|error| Broken::NotAMessage(error.to_string()))
}
