//! Whether a host that is called fenced lives.

use std::time::Duration;

use rehome_shared::api::cluster::FailoverRequest;
use rehome_shared::ids::HostAddr;

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

pub(super) fn alive(peer: &HostAddr, request: &FailoverRequest) -> String {
    let FailoverRequest {
        application, to, ..
    } = request;
    format!(
        "{peer} answers, if only by its proxyd or its kernel: it is not fenced. Use `rehome move {application} --to {to}`, or take it off the network first"
    )
}
