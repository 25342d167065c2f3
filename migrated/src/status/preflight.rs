//! What would fail here if this host followed a deployment.

use std::time::Duration;

use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{Desired, Failure};
use rehome_shared::api::peer::PreflightReply;
use rehome_shared::api::proxy::{CheckPorts, RouteKey};
use rehome_shared::ids::AppName;

use crate::applications::instance_spec;
use crate::host::Host;
use crate::proxy::{Patience, ask_again};

/// How long a preflight waits for word of an image. An engine whose registry refuses says so
/// after ten seconds; who asks for the preflight waits for thirty.
const CHECK: Duration = Duration::from_secs(20);

/// What would fail here if the host followed a deployment. Nothing is changed.
pub async fn preflight(host: &Host, desired: &Desired) -> PreflightReply {
    let mut problems = Vec::new();
    let mut add = |application: Option<AppName>, reason: String| {
        problems.push(Failure {
            host: host.address.clone(),
            application,
            reason,
        });
    };
    if let Err(error) = host.runtime.ping().await {
        add(None, Report(&error).to_string());
    }
    let placed: Vec<(&AppName, _)> = desired
        .placement
        .values()
        .flatten()
        .filter_map(|name| desired.applications.get(name).map(|spec| (name, spec)))
        .collect();
    let ports = placed.iter().flat_map(|(_, spec)| spec.ports.iter());
    let keys = ports.map(|port| RouteKey::new(port.external, port.protocol));
    let ports = CheckPorts {
        keys: keys.collect(),
    };
    match ask_again(Patience::BRIEF, || host.proxy.check_ports(&ports)).await {
        Ok(reply) => {
            for problem in reply.problems {
                add(
                    None,
                    format!(
                        "external port {} cannot be listened on: {}",
                        problem.key, problem.reason
                    ),
                );
            }
        }
        Err(error) => add(
            None,
            format!("its proxyd cannot be asked: {}", Report(&error)),
        ),
    }
    let mut checks = Vec::new();
    for (name, spec) in placed {
        let here = desired.host_of(name) == Some(&host.address);
        let ours = host.ledger.read(|registry| registry.owned(name).is_some());
        if !here || (ours && host.instance(name).is_some()) {
            continue;
        }
        let wanted = instance_spec(host, name, rehome_shared::ids::Epoch(1), spec, &[]);
        checks.push(async move {
            // A registry that takes longer is asked again when the image is needed.
            let checked = tokio::time::timeout(CHECK, host.runtime.check_image(&wanted)).await;
            (name.clone(), checked)
        });
    }
    for (name, checked) in futures_util::future::join_all(checks).await {
        if let Ok(Err(error)) = checked {
            add(Some(name), Report(&error).to_string());
        }
    }
    PreflightReply { problems }
}
