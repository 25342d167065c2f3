//! What a host does by the plans of the reconcile loop.

use migrated_core::admission::may_give;
use migrated_core::reconcile::{Action, InstancePhase, InstanceSeen, Seen, plan};
use migrated_core::record::{Record, SourceRecord};
use migrated_core::source::SourceMigration;
use rehome_shared::config::model::RestartPolicy;
use rehome_shared::ids::{DeploymentGeneration, HostAddr};

use super::{Data, Instance, World};
use crate::values::{self, HOSTS, application};

const HASH: &str = "hash";

impl World {
    pub(super) fn reconcile(&mut self, at: usize, app: usize) -> Option<usize> {
        if !self.hosts[at].up {
            return None;
        }
        let action = self.plan(at, app);
        match action {
            Action::None => {}
            Action::Birth => self.birth(at, app),
            Action::Run | Action::Start { .. } => self.run_here(at, app),
            Action::Stop | Action::Evict => self.hosts[at].sides[app].instance = None,
            Action::Migrate { to } => self.begin(at, app, to),
        }
        if self.hosts[at].up {
            self.tend_gate(at, app);
        }
        Some(at)
    }

    fn plan(&self, at: usize, app: usize) -> Action {
        let host = &self.hosts[at];
        let name = application(app);
        // Somebody who sees all hosts allows a birth where nobody ever was.
        let known = |host: &super::Host| host.registry.applications().contains_key(&name);
        let birth = !self.hosts.iter().any(known);
        plan(&Seen {
            application: &name,
            here: &values::host(at),
            registry: &host.registry,
            desired_host: Some(&values::host(self.desired[app])),
            birth: birth.then_some(DeploymentGeneration(1)),
            desired_hash: Some(HASH),
            instance: host.sides[app].instance.map(|instance| InstanceSeen {
                config_hash: HASH,
                state: if instance.running {
                    InstancePhase::Running
                } else {
                    InstancePhase::Exited { success: false }
                },
            }),
            restart_policy: RestartPolicy::Always,
            exits: 0,
            move_failed: host.failed.contains(&app),
            host_restarted: host.rebooted,
            cleared: true,
        })
    }

    fn birth(&mut self, at: usize, app: usize) {
        let born = Record::Born {
            application: application(app),
            volumes: values::volumes(app),
        };
        if self.persist(at, &[born]) {
            self.make_volumes(at, app);
        }
    }

    /// Makes what was announced and is not there; `false` when the host went down over it.
    fn make_volumes(&mut self, at: usize, app: usize) -> bool {
        let host = &mut self.hosts[at];
        let unmade = host
            .registry
            .owned(&application(app))
            .is_some_and(|owned| !owned.unmade.is_empty());
        if !unmade {
            return true;
        }
        host.sides[app].live.get_or_insert_with(Data::new);
        let made = Record::VolumesMade {
            application: application(app),
        };
        self.persist(at, &[made])
    }

    fn run_here(&mut self, at: usize, app: usize) {
        if !self.make_volumes(at, app) {
            return;
        }
        let Some(epoch) = self.epoch_here(at, app) else {
            self.broken = Some("a plan runs what is not owned".to_owned());
            return;
        };
        let side = &mut self.hosts[at].sides[app];
        if app != values::WITHOUT_VOLUME && side.live.is_none() {
            self.broken = Some("a plan runs on a volume that is gone".to_owned());
        }
        side.instance = Some(Instance {
            epoch,
            running: true,
        });
    }

    fn begin(&mut self, at: usize, app: usize, to: HostAddr) {
        let Some(epoch) = self.epoch_here(at, app) else {
            self.broken = Some("a plan moves what is not owned".to_owned());
            return;
        };
        self.migrations += 1;
        let id = values::id(self.migrations);
        let plan = values::plan(app, to, epoch, self.now);
        let here = values::host(at);
        if may_give(&self.hosts[at].registry, &here, &id, &plan).is_err() {
            return;
        }
        let planned = Record::Source {
            migration: id.clone(),
            step: SourceRecord::Planned(plan.clone()),
        };
        if self.persist(at, &[planned]) {
            let live = SourceMigration::begin(id.clone(), plan);
            self.hosts[at].lives.insert(id, live);
        }
    }

    /// The gate of what this host owns and no handoff has in hand.
    fn tend_gate(&mut self, at: usize, app: usize) {
        let host = &mut self.hosts[at];
        let name = application(app);
        let free = host
            .registry
            .source_of(&name)
            .is_none_or(|m| m.phase.leaves_serving())
            && host.registry.incoming(&name).is_none();
        if free && host.registry.owned(&name).is_some() {
            let side = &mut host.sides[app];
            side.gate = side.instance.is_some_and(|instance| instance.running);
        }
    }

    /// The hosts that own an application.
    pub(super) fn owners_of(&self, app: usize) -> Vec<usize> {
        (0..HOSTS)
            .filter(|at| self.epoch_here(*at, app).is_some())
            .collect()
    }
}
