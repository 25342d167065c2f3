//! The units in `config/systemd` as systemd reads them, and what they must and must not say.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use rehome_tests::project;

/// Each unit with the most exposure that `systemd-analyze security` may find, times ten.
const UNITS: [(&str, u32); 2] = [("proxyd", 25), ("migrated", 75)];

fn unit(name: &str) -> anyhow::Result<String> {
    let path = project()?
        .join("config/systemd")
        .join(format!("{name}.service"));
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// The values of a key, in their order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .collect()
}

/// A copy of a unit whose program exists on this machine.
fn installed(directory: &Path, name: &str, unit: &str) -> anyhow::Result<PathBuf> {
    let program = format!("/usr/local/bin/{name}");
    ensure!(
        unit.contains(&program),
        "{name}.service does not start {program}"
    );
    let path = directory.join(format!("{name}.service"));
    std::fs::write(&path, unit.replace(&program, "/bin/true"))?;
    Ok(path)
}

fn analyze(arguments: &[&str], unit: &Path) -> anyhow::Result<Output> {
    Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .output()
        .context("cannot run systemd-analyze: `make deps-test` installs it")
}

/// What systemd finds wrong. An unknown key is only a warning to it, so any word is too much.
fn complaints(name: &str, unit: &str) -> anyhow::Result<String> {
    let directory = tempfile::tempdir()?;
    let path = installed(directory.path(), name, unit)?;
    let output = analyze(&["verify", "--man=no"], &path)?;
    let said = String::from_utf8(output.stderr)?;
    // Units of this machine that ours are ordered after may have faults of their own.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
    ensure!(
        output.status.success() || !ours.is_empty(),
        "systemd-analyze failed: {said}"
    );
    Ok(ours.join("\n"))
}

#[test]
fn systemd_finds_nothing_to_complain_about() -> anyhow::Result<()> {
    for (name, _) in UNITS {
        assert_eq!(complaints(name, &unit(name)?)?, "", "{name}.service");
    }
    Ok(())
}

#[test]
fn a_key_that_systemd_does_not_know_would_be_noticed() -> anyhow::Result<()> {
    for (name, _) in UNITS {
        let wrong = unit(name)?.replace("Restart=always", "Restart=always\nRestartSecs=1");
        assert!(
            complaints(name, &wrong)?.contains("RestartSecs"),
            "{name}.service"
        );
    }
    Ok(())
}

#[test]
fn the_sandbox_does_not_loosen() -> anyhow::Result<()> {
    for (name, limit) in UNITS {
        let directory = tempfile::tempdir()?;
        let path = installed(directory.path(), name, &unit(name)?)?;
        let threshold = format!("--threshold={limit}");
        let output = analyze(
            &["security", "--offline=true", "--no-pager", &threshold],
            &path,
        )?;
        let said = String::from_utf8_lossy(&output.stdout);
        let last = said.lines().last().unwrap_or_default();
        assert!(
            output.status.success(),
            "{name}.service is above {limit}: {last}"
        );
        assert!(last.contains("Overall exposure level"), "{said}");
    }
    Ok(())
}

#[test]
fn both_tell_systemd_that_they_live_and_are_restarted() -> anyhow::Result<()> {
    for (name, _) in UNITS {
        let unit = unit(name)?;
        assert_eq!(values(&unit, "Type"), ["notify"]);
        assert_eq!(values(&unit, "Restart"), ["always"]);
        assert_eq!(values(&unit, "WatchdogSec").len(), 1);
        assert_eq!(values(&unit, "ExecReload"), ["/bin/kill -HUP $MAINPID"]);
        // Both sockets are in one directory, which must not go with the first that stops.
        assert_eq!(values(&unit, "RuntimeDirectory"), ["rehome"]);
        assert_eq!(values(&unit, "RuntimeDirectoryPreserve"), ["yes"]);
        assert_eq!(values(&unit, "StateDirectory"), [format!("rehome/{name}")]);
    }
    Ok(())
}

#[test]
fn the_ports_and_connections_of_proxyd_outlive_it() -> anyhow::Result<()> {
    let unit = unit("proxyd")?;
    assert_eq!(values(&unit, "FileDescriptorStoreMax"), ["1056"]);
    // Else a word of the successor's would count before it has been named.
    assert_eq!(values(&unit, "NotifyAccess"), ["main"]);
    Ok(())
}

#[test]
fn applications_outlive_migrated() -> anyhow::Result<()> {
    let unit = unit("migrated")?;
    assert_eq!(values(&unit, "KillMode"), ["process"]);
    assert_eq!(values(&unit, "Delegate"), ["yes"]);
    let order = values(&unit, "After").join(" ");
    for other in ["docker.service", "proxyd.service"] {
        assert!(order.contains(other), "{other} is not in {order}");
    }
    Ok(())
}

/// An option that makes a mount namespace would hide the volumes from the container engine.
#[test]
fn migrated_shares_its_mounts_with_the_container_engine() -> anyhow::Result<()> {
    let unit = unit("migrated")?;
    for key in [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "InaccessiblePaths",
        "MountAPIVFS",
        "MountFlags",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateTmp",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootImage",
        "TemporaryFileSystem",
    ] {
        assert!(
            values(&unit, key).is_empty(),
            "{key}= makes a mount namespace"
        );
    }
    Ok(())
}
