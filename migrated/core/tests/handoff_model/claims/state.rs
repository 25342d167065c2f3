//! A state of the world of claims, in a handful of bytes.

use crate::machines::NONE;

pub(super) const HOSTS: [usize; 3] = [0, 1, 2];

/// What runs of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Power {
    Up,
    /// Its daemon is down: whoever asks is refused.
    DaemonDown,
    /// The whole host is down: nothing of it answers.
    Gone,
    /// The same, and it stays so until somebody lets it come back.
    Off,
}

/// A deployment, as far as it says where the application is and who is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Deployment {
    pub(super) generation: u8,
    pub(super) place: u8,
    /// The hosts that are called fenced, as bits.
    pub(super) fenced: u8,
}

impl Deployment {
    pub(super) fn first(place: usize) -> Self {
        Self {
            generation: 1,
            place: u8::try_from(place).unwrap(),
            fenced: 0,
        }
    }

    pub(super) fn is_placed_on(self, at: usize) -> bool {
        usize::from(self.place) == at
    }

    pub(super) fn fences(self, at: usize) -> bool {
        self.fenced & bit(at) != 0
    }

    /// What decides between two deployments; the order of those of one generation is that of
    /// their hashes, which may be this one or the other one.
    pub(super) fn rank(self, reversed: bool) -> (u8, u8, u8) {
        let place = if reversed { 2 - self.place } else { self.place };
        (self.generation, place, self.fenced)
    }
}

pub(super) fn bit(at: usize) -> u8 {
    1 << at
}

/// An operator's request that a host carries out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Request {
    /// The owner that is fenced, and its epoch.
    pub(super) gone: u8,
    pub(super) epoch: u8,
    /// Whom the deployment that names this host calls fenced.
    pub(super) fenced: u8,
    /// Whether a deployment names this host; before, the request was only checked.
    pub(super) named: bool,
    /// Who agreed, as bits; the fenced host agrees by its silence.
    pub(super) agreed: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub(super) journal: u16,
    /// The migration that its daemon drives.
    pub(super) live: u16,
    pub(super) power: Power,
    /// Whether it is cut off from all others.
    pub(super) cut: bool,
    /// Whether the others were asked since the daemon was started.
    pub(super) cleared: bool,
    pub(super) instance: bool,
    pub(super) follows: Deployment,
    pub(super) request: Option<Request>,
}

impl Host {
    pub(super) fn of(journal: u16) -> Self {
        Self {
            journal,
            live: NONE,
            power: Power::Up,
            cut: false,
            cleared: true,
            instance: false,
            follows: Deployment::first(0),
            request: None,
        }
    }

    /// What the daemon knew beyond its journal is lost, and with the host its instance.
    pub(super) fn fall(&mut self, power: Power) {
        self.power = power;
        self.live = NONE;
        self.request = None;
        self.cleared = false;
        self.instance &= power == Power::DaemonDown;
    }

    /// Whether nothing of it answers.
    pub(super) fn is_silent(&self) -> bool {
        self.cut || matches!(self.power, Power::Gone | Power::Off)
    }

    /// Whether somebody can vouch for its being away.
    pub(super) fn is_away(&self) -> bool {
        self.cut || self.power == Power::Off
    }
}

/// A state of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) hosts: [Host; 3],
    pub(super) begun: bool,
    pub(super) absences: u8,
    pub(super) operators: u8,
    pub(super) crashes: u8,
}

impl State {
    pub(super) fn of(mut hosts: [Host; 3], follows: Deployment) -> Self {
        for host in &mut hosts {
            host.follows = follows;
        }
        Self {
            hosts,
            begun: false,
            absences: 0,
            operators: 0,
            crashes: 0,
        }
    }

    pub(super) fn others(at: usize) -> impl Iterator<Item = usize> {
        HOSTS.into_iter().filter(move |other| *other != at)
    }

    /// Whether two daemons can talk.
    pub(super) fn reaches(&self, at: usize, other: usize) -> bool {
        let can = |at: usize| self.hosts[at].power == Power::Up && !self.hosts[at].cut;
        can(at) && can(other)
    }
}
