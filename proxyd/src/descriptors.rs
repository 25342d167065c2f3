//! Limits that fit the descriptors that there are.
//!
//! A relayed connection has two. If clients alone could take them all, none would be left for
//! the applications, and nobody would get through; so the limits are lowered until both fit.
//! What is more waits in the kernel's backlog. Where trunks are sealed, those that are kept ready
//! have theirs too.

use proxyd_core::limits::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::settings::Settings;

/// Listeners, files, control connections, and the pipes of connections that carry bulk.
const OWN: u64 = 512;

/// Raises the process's limit as far as it goes and lowers the settings to fit it.
pub(crate) fn fit(mut settings: Settings) -> Settings {
    let sessions = u64::try_from(settings.udp_sessions).unwrap_or(u64::MAX);
    let wanted = (settings.limits.connections, sessions);
    let there = raise();
    let places = ready_places(there, settings.ready_places);
    settings.ready_places = places;
    // They may be both ways.
    let ready = settings
        .seal
        .as_ref()
        .map_or(0, |_| places.saturating_mul(2));
    let ready = u64::try_from(ready).unwrap_or(u64::MAX);
    let (connections, sessions) = share(there.saturating_sub(ready), wanted);
    if (connections, sessions) != wanted {
        tracing::warn!(
            descriptors = there,
            connections,
            udp_sessions = sessions,
            "too few descriptors for the limits of the configuration, lower ones are in force"
        );
    }
    settings.limits = Limits {
        connections,
        ..settings.limits
    };
    settings.udp_sessions = usize::try_from(sessions).unwrap_or(usize::MAX);
    settings
}

/// How many ready connections fit each way, beside all else.
fn ready_places(there: u64, wanted: usize) -> usize {
    wanted.min(usize::try_from(there / 32).unwrap_or(usize::MAX))
}

/// How many connections and UDP sessions fit.
fn share(there: u64, (connections, sessions): (u64, u64)) -> (u64, u64) {
    let free = there.saturating_sub(OWN.min(there / 2));
    let sessions = sessions.min(free / 8);
    let connections = connections.min(free.saturating_sub(sessions) / 2);
    (connections.max(1), sessions.max(1))
}

/// Raises the process's limit as far as it goes, and says how far that is.
pub(crate) fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let highest = limit.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        highest
    } else {
        limit.current.unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_take_the_descriptors_of_their_applications() {
        assert_eq!(share(1_000_000, (20_000, 4096)), (20_000, 4096));
        assert_eq!(share(u64::MAX, (20_000, 4096)), (20_000, 4096));
        for there in [0, 1, 64, 256, 1024, 20_000] {
            let (connections, sessions) = share(there, (20_000, 4096));
            assert!(connections >= 1 && sessions >= 1);
            assert!(there < 8 || 2 * connections + sessions <= there, "{there}");
            let ready = 2 * u64::try_from(ready_places(there, 1024)).unwrap();
            assert!(ready <= there / 16);
        }
    }
}
