//! The successor's side.

use std::collections::BTreeSet;

use super::message::{Batch, Broken, End, Hello, Message, Refusal, Terms};
use super::part::PartId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The predecessor has not spoken yet.
    Greeting,
    /// What this one is built of comes.
    Equipping,
    /// It is being built.
    Building,
    /// It is ready.
    Ready,
    /// It accepts; connections come.
    Moving,
    /// It has everything.
    Over,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Greeting => "before a greeting",
            Self::Equipping => "before this one is equipped",
            Self::Building => "while this one is built",
            Self::Ready => "before this one accepts",
            Self::Moving => "while connections come",
            Self::Over => "after the end",
        }
    }
}

/// What a message of the predecessor asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum ToDo {
    /// Nothing: it can be done, on these terms.
    Wait(Terms),
    /// Hold these parts and touch nothing of them, then say so by [`Taker::hold`].
    Hold(Batch),
    /// Build everything of the parts so far and say so by [`Taker::built`].
    Build,
    /// Accept from now on.
    Accept,
    /// These are this one's own now.
    Pass(Vec<PartId>),
    /// Everything is here: say so by [`Message::Serving`], and then serve the rest too.
    Serve(End),
}

/// What becomes of a successor whose predecessor is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// It ends: the predecessor goes on, or somebody starts another one.
    Quit,
    /// It serves: nobody else does. What it holds and was not released is its own too: a
    /// predecessor that had taken that back would have ended this one first.
    GoOn,
}

/// The successor's side of a handover.
#[derive(Debug)]
pub struct Taker {
    own: Hello,
    stage: Stage,
    held: BTreeSet<PartId>,
    /// A batch has come and was not answered yet.
    asked: bool,
}

impl Taker {
    /// One that has said nothing yet.
    #[must_use]
    pub fn new(own: Hello) -> Self {
        Self {
            own,
            stage: Stage::Greeting,
            held: BTreeSet::new(),
            asked: false,
        }
    }

    /// What to say first.
    #[must_use]
    pub fn greeting(&self) -> Message {
        Message::Hello(self.own.clone())
    }

    /// The predecessor says something.
    ///
    /// # Errors
    /// [`Broken`]: the handover has failed.
    pub fn hear(&mut self, message: Message) -> Result<ToDo, Broken> {
        match (self.stage, message) {
            (Stage::Greeting, Message::Hello(theirs)) => {
                let terms = self.own.agree(&theirs)?;
                self.stage = Stage::Equipping;
                Ok(ToDo::Wait(terms))
            }
            (Stage::Equipping | Stage::Ready | Stage::Moving, Message::Batch(batch))
                if !self.asked =>
            {
                self.asked = true;
                Ok(ToDo::Hold(batch))
            }
            (Stage::Equipping, Message::Equipped) if !self.asked => {
                self.stage = Stage::Building;
                Ok(ToDo::Build)
            }
            (Stage::Ready, Message::Go) if !self.asked => {
                self.stage = Stage::Moving;
                Ok(ToDo::Accept)
            }
            (Stage::Moving, Message::Release { ids }) if !self.asked => {
                if let Some(unknown) = ids.iter().find(|id| !self.held.contains(id)) {
                    return Err(Broken::Unknown(*unknown));
                }
                for id in &ids {
                    self.held.remove(id);
                }
                Ok(ToDo::Pass(ids))
            }
            (Stage::Moving, Message::End(end)) if !self.asked => {
                self.stage = Stage::Over;
                Ok(ToDo::Serve(end))
            }
            (stage, message) => Err(Broken::OutOfTurn {
                what: message.name(),
                stage: stage.name(),
            }),
        }
    }

    /// What to say when the parts of a batch are held, but for those that are refused.
    pub fn hold(
        &mut self,
        held: impl IntoIterator<Item = PartId>,
        refused: Vec<Refusal>,
    ) -> Message {
        self.asked = false;
        if self.stage == Stage::Moving {
            self.held.extend(held);
        }
        Message::Ack { refused }
    }

    /// What to say when everything is built.
    pub fn built(&mut self) -> Message {
        self.stage = Stage::Ready;
        Message::Ready
    }

    /// Whether connections come now. From here on the silence of a predecessor means nothing: it
    /// may wake and believe that all is its own. Only the end of the socket says that it is gone.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        self.stage == Stage::Moving
    }

    /// The socket has ended, so the predecessor is gone.
    pub fn lost(&self) -> Fate {
        match self.stage {
            Stage::Greeting | Stage::Equipping | Stage::Building | Stage::Ready => Fate::Quit,
            Stage::Moving | Stage::Over => Fate::GoOn,
        }
    }
}
