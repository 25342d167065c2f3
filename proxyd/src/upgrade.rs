//! `proxyd --upgrade`, and the process between a running proxyd and its successor.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use http::Method;
use rehome_runtime::http_client::{ClientError, HttpClient};
use rehome_shared::api::proxy::{Upgrade, UpgradeReply};
use rehome_shared::config::daemon::ProxydConfig;

/// Longer than a handover takes in which nobody is given up.
const LIMIT: Duration = Duration::from_mins(5);

/// Has the running proxyd hand over to this program.
pub(crate) fn upgrade(path: &Path, config: &ProxydConfig) -> anyhow::Result<UpgradeReply> {
    let executable = std::env::current_exe().context("cannot tell where this program is")?;
    let path = std::path::absolute(path)?;
    let path = path.to_str().context("the path of the file is no text")?;
    let upgrade = Upgrade {
        executable,
        arguments: vec!["--config".to_owned(), path.to_owned()],
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let http = HttpClient::unix(&config.socket);
    let asked = http.request_json(Method::POST, "/v1/upgrade", Some(&upgrade), LIMIT);
    runtime.block_on(asked).map_err(|error| {
        let what = if matches!(error, ClientError::Timeout { .. }) {
            "the handover goes on: see the log of the running proxyd for its end"
        } else {
            "the running proxyd did not hand over"
        };
        anyhow::Error::from(error).context(what)
    })
}

/// What a person reads of it.
pub(crate) fn told(reply: &UpgradeReply) -> String {
    let UpgradeReply {
        pid,
        version,
        sockets,
        held,
        relays,
        stayed,
        why,
        milliseconds,
    } = reply;
    let text = format!(
        "handed over to {version} (pid {pid}) in {milliseconds} ms: \
         {sockets} sockets, {held} waiting clients, {relays} connections"
    );
    if *stayed == 0 {
        return text;
    }
    let reasons = why.join("; ");
    format!("{text}\n{stayed} connections stay with the old process, for 30 s at most: {reasons}")
}

/// Starts the successor, which has this process's standard input, and leaves it to whoever adopts
/// orphans. The other end of this process's output must see its end, so the successor has
/// another one.
pub(crate) fn begin(path: &Path) -> anyhow::Result<u32> {
    let executable = std::env::current_exe().context("cannot tell where this program is")?;
    let output = io::stderr().as_fd().try_clone_to_owned()?;
    let successor = Command::new(executable)
        .arg("--config")
        .arg(path)
        .args(["--succeed", "run"])
        .stdin(Stdio::inherit())
        .stdout(Stdio::from(output))
        .spawn()
        .context("cannot start the successor")?;
    Ok(successor.id())
}
