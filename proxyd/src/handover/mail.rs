//! What a process that has stopped left for this one.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use proxyd_core::handover::{Batch, Counts, Part, Socket};
use proxyd_core::reload::{Place, Spot};
use rehome_runtime::report::Report;
use rehome_shared::config::daemon::ProxydConfig;

use super::departure::Arrival;
use super::hello;
use super::leave::known;
use super::letters::{forget, read_letter};
use super::take::Opened;
use crate::context::Context;
use crate::descriptors;
use crate::listener::Inherited;

/// A connection, not watched by anybody.
type Standing = (Part, Vec<OwnedFd>, Vec<u8>);

/// What letters held. Dropping it ends the connections.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    counts: Option<Counts>,
    ports: Vec<(Spot, OwnedFd)>,
    connections: Vec<Standing>,
}

impl Mail {
    /// Reads letters; what cannot be read of them is lost.
    pub(crate) fn read(letters: &[UnixDatagram], config: &ProxydConfig) -> Self {
        let mut mail = Self::default();
        if !letters.is_empty() {
            // What finds no room here would be closed.
            descriptors::raise();
        }
        let own = known(&hello(config));
        for letter in letters {
            let each = |batch: &Batch, opened| mail.take(batch, opened);
            if let Err(error) = read_letter(letter, &own, each) {
                let error = Report(&error).to_string();
                tracing::error!(error, "what the process before this one left is lost");
            }
        }
        forget(letters.len());
        mail
    }

    fn take(&mut self, batch: &Batch, (content, parts, mut descriptors): Opened) {
        tracing::debug!(parts = batch.ids.len(), "read a batch");
        for unpacked in parts {
            let own: Vec<_> = descriptors
                .by_ref()
                .take(unpacked.descriptors.len())
                .collect();
            let bytes = content.get(unpacked.bytes).unwrap_or_default().to_vec();
            match unpacked.part {
                Ok(part) => self.take_one(part, own, bytes),
                Err(error) => lost(&error),
            }
        }
    }

    fn take_one(&mut self, part: Part, descriptors: Vec<OwnedFd>, bytes: Vec<u8>) {
        match part {
            Part::Counts(counts) => self.counts = Some(counts),
            Part::Socket(Socket::Port { key, at }) if key.is_udp() => {
                let place = at.map_or(Place::Everywhere, Place::Address);
                let socket = descriptors.into_iter().next();
                self.ports
                    .extend(socket.map(|socket| (Spot { key, place }, socket)));
            }
            // The manager keeps these itself, and the disk has the table.
            Part::Socket(_) | Part::Table { .. } => {}
            Part::Newcomer(_) | Part::Held(_) | Part::Relay(_) | Part::Rest(_) => {
                self.connections.push((part, descriptors, bytes));
            }
        }
    }

    /// Adds the ports to those that the manager kept.
    pub(crate) fn give_ports(&mut self, inherited: &mut Inherited) {
        for (spot, socket) in std::mem::take(&mut self.ports) {
            inherited.open.entry(spot).or_insert(socket);
        }
    }

    /// Has the connections go on here. Nobody else was taken in yet.
    pub(crate) fn pass(self, context: &Context) {
        let Some(counts) = self.counts else { return };
        let all = self.connections.len();
        context.book.count_on(&counts);
        for (part, descriptors, bytes) in self.connections {
            match Arrival::hold(context, part, descriptors, &bytes) {
                Ok(arrival) => arrival.pass(context),
                Err(error) => lost(&error),
            }
        }
        context.book.all_came();
        tracing::info!(connections = all, "going on with what was left");
    }
}

fn lost(error: &str) {
    tracing::warn!(error, "a connection that was left is lost");
}
