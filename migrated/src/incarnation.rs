//! Which start of the host this is: a restart of `migrated` alone leaves applications running, a
//! restart of the host ends them all, and then what should run is started again.

use std::path::Path;

use rehome_runtime::report::Report;
use rehome_runtime::store;

use crate::host::Host;

const FILE: &str = "incarnation";

/// A text that differs for every start of the host: the kernel's boot id, and the start time of
/// PID 1, which differs for a host that is a namespace.
#[must_use]
pub fn current() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let init = std::fs::read_to_string("/proc/1/stat").unwrap_or_default();
    // The fields behind the name; the start time is the 22nd of all, the 20th of these.
    let started = init
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(19));
    format!("{} {}", boot.trim(), started.unwrap_or_default())
}

/// Whether the host was started since [`remember`] was called last.
#[must_use]
pub fn is_new(state: &Path) -> bool {
    std::fs::read_to_string(state.join(FILE)).ok().as_deref() != Some(current().as_str())
}

/// Everything was taken care of for this start of the host.
pub fn remember(host: &Host) {
    let path = host.config().state.join(FILE);
    if let Err(error) = store::replace(&path, current().as_bytes()) {
        let error = Report(&error).to_string();
        tracing::warn!(error, "this start of the host cannot be remembered");
    }
}
