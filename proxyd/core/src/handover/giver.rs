//! The predecessor's side.

use std::collections::BTreeSet;

use super::message::{Broken, End, Hello, Message, Refusal, Terms};
use super::part::PartId;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The successor has not spoken yet.
    Greeting,
    /// It gets what it is built of.
    Equipping,
    /// It is built.
    Building,
    /// It is ready; nobody has accepted for a moment.
    Prepared,
    /// It accepts; connections go over.
    Moving,
    /// It has everything, and has not said so yet.
    Ending,
    /// It serves alone.
    Over,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Greeting => "before a greeting",
            Self::Equipping => "before a successor is equipped",
            Self::Building => "while a successor is built",
            Self::Prepared => "before a successor accepts",
            Self::Moving => "while connections go over",
            Self::Ending => "at the end",
            Self::Over => "after the end",
        }
    }
}

/// What a message of the successor means.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Heard {
    /// It can take over, on these terms.
    Greeted(Terms),
    /// It holds the parts of the batch but for these, which are passed on here again. The others
    /// are to be let go of now, and then released.
    Held {
        /// To be released.
        taken: Vec<PartId>,
        /// Not taken.
        refused: Vec<Refusal>,
    },
    /// It is built.
    Ready,
    /// It serves alone.
    Serving,
}

/// The predecessor's side of a handover.
///
/// When it has failed, the successor is ended first; then all that was stopped and not released
/// is passed on here again, whether it was offered or not.
#[derive(Debug)]
pub struct Giver {
    own: Hello,
    stage: Stage,
    /// Under way: sent, and not released.
    sent: BTreeSet<PartId>,
    /// Whether the successor has answered the last batch.
    answered: bool,
}

impl Giver {
    /// One that waits for its successor's greeting.
    #[must_use]
    pub fn new(own: Hello) -> Self {
        Self {
            own,
            stage: Stage::Greeting,
            sent: BTreeSet::new(),
            answered: true,
        }
    }

    /// The successor says something.
    ///
    /// # Errors
    /// [`Broken`]: the handover has failed.
    pub fn hear(&mut self, message: Message) -> Result<Heard, Broken> {
        match (self.stage, message) {
            (Stage::Greeting, Message::Hello(theirs)) => {
                let terms = self.own.agree(&theirs)?;
                self.stage = Stage::Equipping;
                Ok(Heard::Greeted(terms))
            }
            (_, Message::Failed { reason }) => Err(Broken::GaveUp(reason)),
            (Stage::Equipping | Stage::Prepared | Stage::Moving, Message::Ack { refused })
                if !self.answered =>
            {
                self.answered(refused)
            }
            (Stage::Building, Message::Ready) => {
                self.stage = Stage::Prepared;
                Ok(Heard::Ready)
            }
            (Stage::Ending, Message::Serving) => {
                self.stage = Stage::Over;
                Ok(Heard::Serving)
            }
            (stage, message) => Err(Broken::OutOfTurn {
                what: message.name(),
                stage: stage.name(),
            }),
        }
    }

    fn answered(&mut self, refused: Vec<Refusal>) -> Result<Heard, Broken> {
        self.answered = true;
        for Refusal { id, reason } in &refused {
            if !self.sent.remove(id) {
                return Err(Broken::Unknown(*id));
            }
            // Without its table and its sockets a successor is none.
            if self.stage != Stage::Moving {
                return Err(Broken::Refused {
                    id: *id,
                    reason: reason.clone(),
                });
            }
        }
        let taken = self.sent.iter().copied().collect();
        if self.stage != Stage::Moving {
            // Both sides have these; there is nothing to be released.
            self.sent.clear();
        }
        Ok(Heard::Held { taken, refused })
    }

    /// These parts are sent in one batch. Call it before they are: what may have been sent is
    /// under way. They are not touched here until the successor has refused them, or the handover
    /// has failed.
    ///
    /// # Errors
    /// [`Broken::OutOfTurn`].
    pub fn offer(&mut self, ids: impl IntoIterator<Item = PartId>) -> Result<(), Broken> {
        let stage = match self.stage {
            Stage::Equipping | Stage::Prepared | Stage::Moving => self.answered,
            Stage::Greeting | Stage::Building | Stage::Ending | Stage::Over => false,
        };
        if !stage || !self.sent.is_empty() {
            return Err(self.out_of_turn("batch"));
        }
        self.sent.extend(ids);
        self.answered = false;
        Ok(())
    }

    /// What to say when the successor has all that it is built of.
    ///
    /// # Errors
    /// [`Broken::OutOfTurn`].
    pub fn equipped(&mut self) -> Result<Message, Broken> {
        self.step(Stage::Equipping, Stage::Building, "equipped")?;
        Ok(Message::Equipped)
    }

    /// What to say when nobody accepts here any more.
    ///
    /// # Errors
    /// [`Broken::OutOfTurn`].
    pub fn go(&mut self) -> Result<Message, Broken> {
        self.step(Stage::Prepared, Stage::Moving, "go")?;
        Ok(Message::Go)
    }

    /// What to say of the parts that the successor holds, when they have been let go of here.
    ///
    /// # Errors
    /// [`Broken::OutOfTurn`].
    pub fn release(&mut self) -> Result<Message, Broken> {
        if self.stage != Stage::Moving || !self.answered {
            return Err(self.out_of_turn("release"));
        }
        Ok(Message::Release {
            ids: self.sent.iter().copied().collect(),
        })
    }

    /// The release is on its way: from now on the parts are the successor's, whatever happens.
    pub fn released(&mut self) {
        self.sent.clear();
    }

    /// What to say when there is nothing more.
    ///
    /// # Errors
    /// [`Broken::OutOfTurn`].
    pub fn end(&mut self, end: End) -> Result<Message, Broken> {
        self.step(Stage::Moving, Stage::Ending, "end")?;
        Ok(Message::End(end))
    }

    /// Whether the successor was told to accept: what it has then ends with it.
    #[must_use]
    pub fn has_let_go(&self) -> bool {
        matches!(self.stage, Stage::Moving | Stage::Ending)
    }

    fn step(&mut self, from: Stage, to: Stage, what: &'static str) -> Result<(), Broken> {
        if self.stage != from || !self.answered || !self.sent.is_empty() {
            return Err(self.out_of_turn(what));
        }
        self.stage = to;
        Ok(())
    }

    fn out_of_turn(&self, what: &'static str) -> Broken {
        Broken::OutOfTurn {
            what,
            stage: self.stage.name(),
        }
    }
}
