//! What must be true after every event.

use super::World;
use crate::values::{APPLICATIONS, HOSTS, WITHOUT_VOLUME, application};

impl World {
    pub(super) fn check(&mut self) -> Result<(), String> {
        if let Some(problem) = self.broken.take() {
            return Err(problem);
        }
        for app in 0..APPLICATIONS {
            self.check_owner(app)
                .and_then(|()| self.check_data(app))
                .and_then(|()| self.check_gates(app))
                .map_err(|problem| format!("{}: {problem}", application(app)))?;
        }
        Ok(())
    }

    /// One owner, and none that ever was at the same epoch.
    fn check_owner(&mut self, app: usize) -> Result<(), String> {
        for at in 0..HOSTS {
            if let Some(epoch) = self.epoch_here(at, app) {
                let first = *self.owners[app].entry(epoch).or_insert(at);
                if first != at {
                    return Err(format!("two owners at epoch {epoch}: {first} and {at}"));
                }
            }
        }
        match self.owners_of(app)[..] {
            [] | [_] => {}
            ref many => return Err(format!("the hosts {many:?} own it")),
        }
        let newest = self.owners[app].keys().next_back();
        let owner = self.owners_of(app).first().copied();
        if let (Some(newest), Some(owner)) = (newest, owner)
            && self.epoch_here(owner, app) != Some(*newest)
        {
            return Err(format!("an epoch older than {newest} came back"));
        }
        Ok(())
    }

    /// One instance, on all that was acknowledged; and a copy of that is always somewhere.
    fn check_data(&self, app: usize) -> Result<(), String> {
        if app == WITHOUT_VOLUME {
            return Ok(());
        }
        let acknowledged = &self.acknowledged[app];
        let running: Vec<usize> = (0..HOSTS)
            .filter(|at| {
                let instance = self.hosts[*at].sides[app].instance;
                instance.is_some_and(|instance| instance.running)
            })
            .collect();
        match running[..] {
            [] => {}
            [at] => match &self.hosts[at].sides[app].live {
                None => return Err("it runs without its volume".to_owned()),
                Some(live) if !live.is_superset(acknowledged) => {
                    return Err("it runs without an acknowledged write".to_owned());
                }
                Some(_) => {}
            },
            ref many => return Err(format!("it runs on the hosts {many:?}")),
        }
        let kept = self.hosts.iter().any(|host| {
            let side = &host.sides[app];
            side.live
                .iter()
                .chain(side.finals.values())
                .any(|copy| copy.is_superset(acknowledged))
        });
        if kept || acknowledged.is_empty() {
            Ok(())
        } else {
            Err("an acknowledged write is nowhere any more".to_owned())
        }
    }

    /// Gates lead to an owner; without a volume, to a former one until clients are led away.
    fn check_gates(&self, app: usize) -> Result<(), String> {
        for (at, host) in self.hosts.iter().enumerate() {
            let name = application(app);
            let leaving = app == WITHOUT_VOLUME && host.registry.source_of(&name).is_some();
            if host.sides[app].gate && !leaving && host.registry.owned(&name).is_none() {
                return Err(format!("the gate of host {at} is open without an owner"));
            }
        }
        Ok(())
    }
}
