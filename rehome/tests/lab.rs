//! Labs on this machine: made, used, killed and removed, without a trace afterwards.
//!
//! They need root and the kernel's namespaces. Without root they cannot mean anything, so they
//! say so and end.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const REHOME: &str = env!("CARGO_BIN_EXE_rehome");

/// A lab of one test; what is left of it goes with the value, also when the test fails.
struct Lab {
    name: String,
    /// Stand-ins for the daemons, where the test has some.
    daemons: Option<TempDir>,
}

impl Lab {
    fn new(test: &str) -> Self {
        Self {
            name: format!("t-{test}-{}", std::process::id()),
            daemons: None,
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(REHOME);
        command.arg("lab").args(words.get(..1).unwrap_or_default());
        command
            .args(["--name", &self.name])
            .args(words.get(1..).unwrap_or_default());
        if let Some(daemons) = &self.daemons {
            command.env("REHOME_BIN_DIR", daemons.path());
        }
        command
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        Ok(self.command(words).stdin(Stdio::null()).output()?)
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        Err(format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    fn up(&self, hosts: &str) -> Result<Value> {
        let words = [
            "up",
            "--hosts",
            hosts,
            "--no-daemons",
            "--runtime",
            "process",
            "--json",
        ];
        Ok(serde_json::from_str(&self.ok(&words)?)?)
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&["status", "--json"])?)?)
    }

    /// All that this machine shows of the lab.
    fn traces(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let mut note = |what: &str| {
            found.insert(what.to_owned());
        };
        for file in ["/proc/mounts", "/proc/self/mountinfo"] {
            fs::read_to_string(file)?
                .lines()
                .filter(|l| l.contains(&self.name))
                .for_each(&mut note);
        }
        for directory in ["/run/rehome-lab", "/var/lib/rehome-lab"] {
            for entry in fs::read_dir(directory).into_iter().flatten() {
                let path = entry?.path().display().to_string();
                if path.contains(&self.name) {
                    note(&path);
                }
            }
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
            let group = hierarchy?.path().join(format!("rehome-lab-{}", self.name));
            if group.exists() {
                note(&group.display().to_string());
            }
        }
        let plans = format!("/run/rehome-lab/{}/", self.name);
        for process in fs::read_dir("/proc")? {
            let path = process?.path();
            let words = fs::read(path.join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&words).contains(&plans) {
                note(&format!(
                    "{}: {}",
                    path.display(),
                    String::from_utf8_lossy(&words)
                ));
            }
        }
        Ok(found)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.run(&["down"]));
    }
}

/// Where this machine shows its link into a lab that is up.
fn uplink(lab: &Value) -> Result<PathBuf> {
    let (network, _) = address(lab, 0)
        .rsplit_once('.')
        .map(owned)
        .ok_or("no address")?;
    let gateway = Value::from(format!("{network}.1"));
    let links = Command::new("ip")
        .args(["-json", "-4", "addr", "show"])
        .output()?;
    let links: Value = serde_json::from_slice(&links.stdout)?;
    let links = links.as_array().ok_or("no links")?;
    let link = links
        .iter()
        .find(|link| link.pointer("/addr_info/0/local") == Some(&gateway));
    let name = link
        .and_then(|link| link["ifname"].as_str())
        .ok_or("no uplink")?;
    Ok(Path::new("/sys/class/net").join(name))
}

fn owned((a, b): (&str, &str)) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        drop(writeln!(std::io::stderr(), "skipped: a lab needs root"));
    }
    root
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if holds()? {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Err(format!("not within 30 s: {what}").into())
}

fn pid(lab: &Value, host: usize) -> Option<u64> {
    lab.pointer(&format!("/hosts/{host}/pid"))?.as_u64()
}

fn address(lab: &Value, host: usize) -> String {
    let address = lab.pointer(&format!("/hosts/{host}/address"));
    address
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn two_labs_live_side_by_side_and_leave_nothing() -> Result {
    if !is_root() {
        return Ok(());
    }
    let (first, second) = (Lab::new("a"), Lab::new("b"));
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| first.up("2").map_err(|e| e.to_string()));
        let two = scope.spawn(|| second.up("2").map_err(|e| e.to_string()));
        (one.join(), two.join())
    });
    let one = one.map_err(|_| "panic")??;
    let two = two.map_err(|_| "panic")??;
    assert_ne!(
        address(&one, 0),
        address(&two, 0),
        "each lab has a network of its own"
    );
    let links = [uplink(&one)?, uplink(&two)?];
    assert_ne!(links[0], links[1]);
    assert!(!first.traces()?.is_empty(), "a lab that is up can be seen");

    let peer = address(&one, 1);
    first.ok(&["exec", "h1", "--", "busybox", "ping", "-c1", "-W20", &peer])?;
    assert_eq!(first.ok(&["exec", "h2", "--", "hostname"])?.trim(), "h2");

    first.ok(&["down"])?;
    assert_eq!(first.traces()?, BTreeSet::new());
    assert_eq!(second.status()?, two, "the other lab is untouched");
    second.ok(&["down"])?;
    assert_eq!(second.traces()?, BTreeSet::new());
    assert!(links.iter().all(|link| !link.exists()), "{links:?}");
    second.ok(&["down"])?;
    Ok(())
}

#[test]
fn exec_passes_input_output_status_and_directory() -> Result {
    if !is_root() {
        return Ok(());
    }
    let lab = Lab::new("exec");
    lab.up("1")?;
    let directory = tempfile::tempdir()?;
    let mut child = lab
        .command(&["exec", "h1", "sh", "-c", "cat; pwd; echo oops >&2; exit 7"])
        .current_dir(&directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .ok_or("no input")?
        .write_all(b"hello\n")?;
    let output = child.wait_with_output()?;
    let expected = format!("hello\n{}\n", directory.path().display());
    assert_eq!(String::from_utf8(output.stdout)?, expected);
    assert_eq!(String::from_utf8(output.stderr)?, "oops\n");
    assert_eq!(output.status.code(), Some(7));

    let which = lab.ok(&["exec", "h1", "--", "sh", "-c", "command -v rehome"])?;
    assert_eq!(
        Path::new(which.trim()),
        Path::new(REHOME),
        "the rehome of this build comes first"
    );
    let etc = lab.ok(&["exec", "h1", "--", "ls", "/etc/rehome", "/etc/rehome/tls"])?;
    for file in [
        "migrated.yml",
        "proxyd.yml",
        "ca.pem",
        "host.pem",
        "host.key",
    ] {
        assert!(etc.contains(file), "{file} in {etc}");
    }
    let unknown = lab.run(&["exec", "h9", "true"])?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8(unknown.stderr)?.contains("it has h1"));
    Ok(())
}

#[test]
fn a_crashed_host_comes_back_with_its_disk() -> Result {
    if !is_root() {
        return Ok(());
    }
    let lab = Lab::new("crash");
    let up = lab.up("2")?;
    lab.ok(&[
        "exec",
        "h1",
        "--",
        "sh",
        "-c",
        "echo kept >/var/lib/rehome/file; touch /run/gone",
    ])?;
    lab.ok(&["crash", "h1"])?;
    let down = lab.status()?;
    assert_eq!(
        (pid(&down, 0), &down["hosts"][0]["state"]),
        (None, &Value::from("down"))
    );
    assert_eq!(pid(&down, 1), pid(&up, 1), "the other host runs on");
    assert!(!lab.run(&["exec", "h1", "true"])?.status.success());
    lab.ok(&["crash", "h1"])?;

    lab.ok(&["start", "h1"])?;
    assert_eq!(
        lab.ok(&["exec", "h1", "cat", "/var/lib/rehome/file"])?,
        "kept\n"
    );
    assert!(
        !lab.run(&["exec", "h1", "test", "-e", "/run/gone"])?
            .status
            .success()
    );
    let peer = address(&up, 0);
    lab.ok(&["exec", "h2", "--", "busybox", "ping", "-c1", "-W20", &peer])?;

    lab.ok(&["crash", "h2"])?;
    let again = lab.up("2")?;
    assert_eq!(
        again["hosts"][1]["state"], "up",
        "`up` brings up what is down"
    );
    assert_eq!(pid(&again, 0), pid(&lab.status()?, 0));
    let other = lab.run(&["up", "--hosts", "3", "--runtime", "process"])?;
    assert!(String::from_utf8(other.stderr)?.contains("is there with 2 hosts"));
    Ok(())
}

#[test]
fn disks_in_memory_survive_a_crash_and_go_with_the_lab() -> Result {
    if !is_root() {
        return Ok(());
    }
    let lab = Lab::new("memory");
    let words = ["up", "--hosts", "1", "--no-daemons", "--runtime", "process"];
    lab.ok(&[words.as_slice(), &["--in-memory"]].concat())?;
    let script = "cd /var/lib/rehome && echo kept >file && mkdir pool && \
                  truncate -s 128M pool.img && mkfs.btrfs -q pool.img && mount -o loop pool.img pool";
    lab.ok(&["exec", "h1", "--", "sh", "-c", script])?;
    let kind = lab.ok(&["exec", "h1", "stat", "-f", "-c", "%T", "/var/lib/rehome"])?;
    assert_eq!(kind, "tmpfs\n");
    lab.ok(&["crash", "h1"])?;
    lab.ok(&[words.as_slice(), &["--in-memory"]].concat())?;
    let file = lab.ok(&["exec", "h1", "cat", "/var/lib/rehome/file"])?;
    assert_eq!(file, "kept\n");

    lab.ok(&["down"])?;
    assert_eq!(lab.traces()?, BTreeSet::new());
    Ok(())
}

#[test]
fn loop_devices_go_with_their_host() -> Result {
    if !is_root() {
        return Ok(());
    }
    let lab = Lab::new("loop");
    lab.up("1")?;
    // One that is mounted, and goes by itself; one that is not, and would stay for ever.
    let script = "cd /var/lib/rehome && mkdir pool && truncate -s 128M pool.img other.img && \
                  mkfs.btrfs -q pool.img && mount -o loop pool.img pool && \
                  losetup --find other.img";
    lab.ok(&["exec", "h1", "--", "sh", "-c", script])?;
    let disk = Path::new("/var/lib/rehome-lab")
        .join(&lab.name)
        .join("h1/rehome");
    let mut inodes = BTreeSet::new();
    for file in ["pool.img", "other.img"] {
        inodes.insert(fs::metadata(disk.join(file))?.ino().to_string());
    }
    let held = || -> Result<usize> {
        let list = ["--list", "--noheadings", "--output", "BACK-INO"];
        let list = String::from_utf8(Command::new("losetup").args(list).output()?.stdout)?;
        Ok(list
            .lines()
            .filter(|inode| inodes.contains(inode.trim()))
            .count())
    };
    assert_eq!(held()?, 2);
    lab.ok(&["crash", "h1"])?;
    assert_eq!(held()?, 0);
    Ok(())
}

#[test]
fn an_up_killed_at_any_moment_is_removed_whole() -> Result {
    if !is_root() {
        return Ok(());
    }
    let lab = Lab::new("kill");
    let link = uplink(&lab.up("1")?)?;
    lab.ok(&["down"])?;
    for moment in [0, 1, 2, 4, 8, 15, 25, 40, 60, 80, 110, 150] {
        let mut up = lab
            .command(&["up", "--hosts", "3", "--no-daemons", "--runtime", "process"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(moment) && up.try_wait()?.is_none() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        up.kill()?;
        up.wait()?;
        lab.ok(&["down"])?;
        // A process that was about to join the lab finds that nobody waits for it, and ends.
        eventually("nothing is left", || Ok(lab.traces()?.is_empty()))?;
        assert!(!link.exists(), "after {moment} ms: {}", link.display());
    }
    Ok(())
}

#[test]
fn an_interrupted_up_takes_back_what_it_made() -> Result {
    if !is_root() {
        return Ok(());
    }
    let mut lab = Lab::new("int");
    // Daemons that never become ready, so that `up` waits until it is interrupted.
    lab.daemons = Some(stand_ins("#!/bin/sh\nexec sleep 1000\n")?);
    let mut up = lab
        .command(&["up", "--hosts", "2", "--runtime", "process"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut messages = BufReader::new(up.stderr.take().ok_or("no messages")?).lines();
    let started = |line: std::io::Result<String>| line.is_ok_and(|l| l.contains("h2"));
    assert!(messages.any(started), "h2 starts");
    let pid = rustix::process::Pid::from_raw(i32::try_from(up.id())?).ok_or("no PID")?;
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    let status = up.wait()?;
    assert_eq!(status.code(), Some(1));
    assert_eq!(lab.traces()?, BTreeSet::new());
    assert!(lab.status().is_err());
    Ok(())
}

#[test]
fn init_restarts_daemons_reaps_orphans_and_honours_holds() -> Result {
    if !is_root() {
        return Ok(());
    }
    let mut lab = Lab::new("init");
    lab.daemons = Some(stand_ins(READY)?);
    let up = lab.ok(&["up", "--hosts", "1", "--runtime", "process", "--json"])?;
    let up: Value = serde_json::from_str(&up)?;
    let in_host = |script: &str| lab.ok(&["exec", "h1", "--", "sh", "-c", script]);
    let running = || in_host("cat /run/rehome/migrated.pid");

    let first = running()?;
    in_host("kill -9 $(cat /run/rehome/migrated.pid)")?;
    eventually("migrated runs again", || {
        Ok(running().is_ok_and(|pid| pid != first))
    })?;

    in_host("touch /run/rehome/hold/proxyd; kill -9 $(cat /run/rehome/proxyd.pid)")?;
    eventually("proxyd is down", || {
        Ok(in_host("cat /run/rehome/proxyd.pid").is_err())
    })?;
    let log = format!("/var/lib/rehome-lab/{}/h1/log/init.log", lab.name);
    let starts =
        || Ok::<_, std::io::Error>(fs::read_to_string(&log)?.matches("proxyd runs").count());
    let before = starts()?;
    in_host("sleep 1")?;
    assert_eq!(starts()?, before, "a held daemon stays down");
    in_host("rm /run/rehome/hold/proxyd")?;
    eventually("proxyd runs again", || {
        Ok(in_host("cat /run/rehome/proxyd.pid").is_ok())
    })?;

    in_host("(sleep 0.1 &) ; (sleep 0.2 &)")?;
    eventually("orphans are reaped", || {
        Ok(!in_host("ps -eo stat=,args=")?.contains("defunct"))
    })?;

    let init = pid(&up, 0).ok_or("no PID")?;
    let init = rustix::process::Pid::from_raw(i32::try_from(init)?).ok_or("no PID")?;
    rustix::process::kill_process(init, rustix::process::Signal::TERM)?;
    eventually("the host ends", || Ok(pid(&lab.status()?, 0).is_none()))?;
    let told = fs::read_to_string(&log)?;
    let (migrated, proxyd) = (told.find("migrated gets"), told.find("proxyd gets"));
    assert!(
        migrated.is_some() && migrated < proxyd,
        "migrated stops first:\n{told}"
    );
    Ok(())
}

/// A stand-in that answers `/readyz` where `rehome lab up` asks.
const READY: &str = r"#!/bin/sh
case $0 in *migrated) port=9420;; *) port=9421;; esac
mkdir -p /run/rehome/www-$port && : >/run/rehome/www-$port/readyz
exec busybox httpd -f -p 127.0.0.1:$port -h /run/rehome/www-$port
";

fn stand_ins(script: &str) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    for name in ["proxyd", "migrated"] {
        let file = directory.path().join(name);
        fs::write(&file, script)?;
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    Ok(directory)
}
