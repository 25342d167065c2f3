//! Whether a host that is called fenced lives.

use std::time::Duration;

use rehome_shared::api::cluster::FailoverRequest;
use rehome_shared::api::peer::HostReport;
use rehome_shared::ids::{AppName, HostAddr};

use crate::host::Host;

/// How long a sign of life is waited for.
const PROBE: Duration = Duration::from_secs(2);

/// Whether anything of a host that is called fenced still answers: its `proxyd`, or at least its
/// kernel. Its applications may run when its `migrated` does not.
pub(super) async fn shows_life(host: &Host, peer: &HostAddr) -> bool {
    let config = host.config();
    for port in [config.proxy.trunk_port, config.peer_port] {
        let address = peer.with_port(port);
        let connecting = tokio::net::TcpStream::connect(address.as_str());
        match tokio::time::timeout(PROBE, connecting).await {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return true,
            Ok(Err(_)) | Err(_) => {}
        }
    }
    false
}

/// Whether the host that answers is another machine than the one that had an application, or the
/// same without its disk: it neither owns nor knows it, so it cannot come back with it.
///
/// A daemon answers only when it has read its journal, and refuses to start with an empty one
/// beside volumes of an application. Whoever owns it says so, whoever gives it away or takes it
/// names it as well, and whoever had it knows whose it is. What others tell such a host of itself
/// it hears as gossip: that is the one thing that it may know.
pub(crate) fn is_stranger(report: &HostReport, application: &AppName) -> bool {
    let owned = report.owned.iter().any(|o| o.application == *application);
    let coming = report.incoming.contains(application) || report.promised.contains_key(application);
    let moved = report
        .migrations
        .iter()
        .any(|m| m.application == *application);
    let known = report.known_owner(application);
    !owned && !coming && !moved && known.is_none_or(|known| known.owner == report.host)
}

pub(super) fn alive(peer: &HostAddr, request: &FailoverRequest) -> String {
    let FailoverRequest {
        application, to, ..
    } = request;
    format!(
        "{peer} answers, if only by its proxyd or its kernel: it is not fenced. Use `rehome move {application} --to {to}`, or take it off the network first"
    )
}
