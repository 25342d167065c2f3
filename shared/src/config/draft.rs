//! An application as one file says it, before it is compared with the others.
//!
//! Ports, links and volumes keep their places, so that what is wrong between two applications is
//! told with the line of the second one.

use std::collections::BTreeMap;

use super::model::{Application, Image, Link, Port, Probe, Volume};
use super::read::{At, Place, Report};
use crate::ids::AppName;

/// The applications of a file by name. An application whose body cannot be read is there too,
/// so that the deployment may name it.
pub(super) type Drafts = BTreeMap<AppName, Draft>;

/// One application.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) place: Place,
    /// Absent when something that every application needs is missing.
    application: Option<Application>,
    pub(super) ports: Vec<(Port, Place)>,
    pub(super) links: Vec<(Link, Place)>,
    pub(super) volumes: Vec<(Volume, Place)>,
}

impl Draft {
    /// An application of which only its place is known yet.
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            application: None,
            ports: Vec::new(),
            links: Vec::new(),
            volumes: Vec::new(),
        }
    }

    /// Gives the rest of the application, where there is an image; `fill` sets its fields.
    pub(super) fn set(&mut self, image: Option<Image>, fill: impl FnOnce(&mut Application)) {
        self.application = image.map(|image| {
            let mut application = Application::new(image);
            fill(&mut application);
            application
        });
    }

    /// How it is asked whether it is healthy, where it says so.
    pub(super) fn probe(&self) -> Option<&Probe> {
        let application = self.application.as_ref()?;
        application.healthcheck.probe.as_ref()
    }

    /// The application, with ports and links as sets: in order, each once.
    pub(super) fn finish(self) -> Option<Application> {
        let mut application = self.application?;
        application.ports = self.ports.into_iter().map(|(port, _)| port).collect();
        application.ports.sort_unstable();
        application.ports.dedup();
        application.links = self.links.into_iter().map(|(link, _)| link).collect();
        application.links.sort_unstable();
        application.links.dedup();
        application.volumes = self.volumes.into_iter().map(|(volume, _)| volume).collect();
        Some(application)
    }
}

/// Reads a mapping of names to bodies.
pub(super) fn drafts(
    entries: Vec<(&str, At<'_>)>,
    report: &mut Report,
    mut body: impl FnMut(&AppName, &At<'_>, &mut Report) -> Draft,
) -> Drafts {
    let mut drafts = Drafts::new();
    for (name, at) in entries {
        match AppName::try_new(name) {
            Ok(name) => {
                let draft = body(&name, &at, report);
                drafts.insert(name, draft);
            }
            Err(error) => report.problem(&at.place, error, "rename the application"),
        }
    }
    drafts
}
