//! What must come of every state when no fault follows: one owner, where the deployment wants
//! it, serves.

use std::ops::Range;

use rehome_shared::api::peer::HandoffState;
use rehome_shared::ids::MigrationId;

use super::World;
use crate::steps::{How, Settling};
use crate::values::{self, APPLICATIONS, HOSTS};

/// More turns than a few moves one after the other take.
const TURNS: usize = 80;

impl World {
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.crash = None;
        for at in 0..HOSTS {
            self.restart(at);
            self.hosts[at].failed.clear();
        }
        for _ in 0..TURNS {
            if self.is_well() {
                return Ok(());
            }
            self.turn()?;
        }
        let owners: Vec<_> = (0..APPLICATIONS).map(|app| self.owners_of(app)).collect();
        let open: Vec<_> = self.hosts.iter().map(|host| &host.lives).collect();
        Err(format!(
            "it does not come to rest: owners {owners:?}, wanted {:?}, open {open:?}",
            self.desired
        ))
    }

    fn is_well(&self) -> bool {
        let rests = self.hosts.iter().all(|host| host.lives.is_empty());
        rests
            && (0..APPLICATIONS).all(|app| {
                let wanted = self.desired[app];
                self.owners_of(app) == [wanted] && self.serves(wanted, app)
            })
    }

    /// Everybody does once what there is to do, and hears all that is said meanwhile.
    fn turn(&mut self) -> Result<(), String> {
        for host in &mut self.hosts {
            host.failed.clear();
        }
        self.turn_some(0..HOSTS, Settling::Healthy);
        self.check()
    }

    /// The same for some, before everything comes to rest.
    pub(super) fn turn_some(&mut self, hosts: Range<usize>, how: Settling) {
        let said = self.messages.len();
        for at in hosts {
            self.work(at, how);
        }
        self.hear_all(said);
    }

    fn hear_all(&mut self, said: usize) {
        let mut next = said;
        while let Some(message) = self.messages.get(next).cloned() {
            self.deliver(message, How::Well);
            self.look();
            next += 1;
        }
    }

    /// What is broken in between is not mended by what follows.
    fn look(&mut self) {
        if let Err(problem) = self.check() {
            self.broken = Some(problem);
        }
    }

    fn work(&mut self, at: usize, how: Settling) {
        self.now = migrated_core::UnixMillis(self.now.0 + 1);
        let lives: Vec<MigrationId> = self.hosts[at].lives.keys().cloned().collect();
        for id in lives {
            self.drive(at, &id, How::Well);
            self.look();
        }
        let open: Vec<_> = self.hosts[at]
            .registry
            .destinations()
            .values()
            .cloned()
            .collect();
        for handoff in open {
            let source = values::number_of(&handoff.reservation.from);
            let wanted = self.hosts[source].lives.contains_key(&handoff.id);
            let hows = match handoff.state() {
                HandoffState::Owned => vec![Settling::Start, how],
                HandoffState::Reserved if !wanted => vec![Settling::Expire],
                HandoffState::Dropped => vec![Settling::Discard],
                HandoffState::Reserved
                | HandoffState::Verified
                | HandoffState::Serving
                | HandoffState::Returned
                | HandoffState::Unknown => Vec::new(),
            };
            for how in hows {
                if self.hosts[at].up {
                    self.settle(at, &handoff.id, how);
                    self.look();
                }
            }
        }
        for app in 0..APPLICATIONS {
            self.reconcile(at, app);
            self.look();
        }
    }
}
