//! An application without a volume: a web server of busybox whose one page is the environment it
//! was started with.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

/// The name of its image; the process runtime has none.
pub const IMAGE: &str = "rehome-test/busybox";

/// The application: serves on `external`, and `says` what it is told to.
#[must_use]
pub fn body(external: u16, says: &str) -> Value {
    let script = "d=/run/page-$$; mkdir -p $d; env >$d/index.html; \
                  exec busybox httpd -f -p 8080 -h $d";
    json!({
        "image": IMAGE,
        "command": ["busybox", "sh", "-c", script],
        "ports": [{"internal": 8080, "external": external}],
        "environment": {"SAYS": says},
        "healthcheck": {"http": "8080/", "interval": "100ms", "retries": 600},
    })
}

/// The environment that the server was started with, by a new connection.
///
/// # Errors
/// When there is no whole answer.
pub fn fetch(at: SocketAddr) -> anyhow::Result<String> {
    let limit = Duration::from_mins(1);
    let mut stream = TcpStream::connect_timeout(&at, limit).context("connect")?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").context("ask")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("read the answer")?;
    let (head, page) = answer.split_once("\r\n\r\n").context("no whole head")?;
    ensure!(head.contains(" 200 "), "{head}");
    Ok(page.to_owned())
}
