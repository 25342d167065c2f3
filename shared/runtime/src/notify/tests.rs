use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use super::*;

/// The environment belongs to the whole process, so the part that talks runs in a child: this
/// same test binary with `NOTIFY_SOCKET` set.
const IN_CHILD: &str = "REHOME_TEST_NOTIFY_CHILD";

/// What the watchdog hears.
const ALIVE: &str = "WATCHDOG=1\n";

#[test]
fn systemd_hears_of_start_reload_life_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "notify::tests::talks_when_it_is_the_child"])
        .env(IN_CHILD, "1")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "20000")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // The socket holds few messages, so they are read while the child talks.
    let mut heard = Vec::new();
    let mut buffer = [0; 1024];
    while heard
        .last()
        .is_none_or(|last: &String| last != "STOPPING=1\n")
    {
        let length = socket.recv(&mut buffer).unwrap();
        heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        if heard.iter().filter(|line| *line == ALIVE).count() == 2 {
            // It has said so again: it may stop.
            drop(child.stdin.take());
        }
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(heard[0], "READY=1\n");
    assert_eq!(heard[1], "STATUS=2 applications\n");
    assert!(
        heard[2].starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{heard:?}"
    );
    assert!(
        heard.iter().filter(|line| *line == ALIVE).count() >= 2,
        "{heard:?}"
    );
}

#[tokio::test]
async fn talks_when_it_is_the_child() {
    if std::env::var_os(IN_CHILD).is_none() {
        return;
    }
    ready();
    status("2 applications");
    reloading();
    let supervisor = Supervisor::new();
    spawn_watchdog(&supervisor);
    assert_eq!(supervisor.running(), 1);
    // Until the parent has heard enough, which it tells by the end of this.
    let told = || std::io::stdin().read(&mut [0]);
    assert_eq!(tokio::task::spawn_blocking(told).await.unwrap().unwrap(), 0);
    assert_eq!(
        supervisor.stop(Duration::from_secs(30)).await,
        crate::supervise::Stop::Clean
    );
    stopping();
}
