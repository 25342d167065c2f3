//! The command of an application: what it is, as whom and with what environment it runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::runtime::InstanceSpec;

/// Where programs are looked for when the application's environment has no `PATH`.
pub(super) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The signals that are forwarded to the command, by the names that files use.
pub(super) const SIGNALS: [(&str, Signal); 9] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("TERM", Signal::TERM),
    ("CONT", Signal::CONT),
    ("WINCH", Signal::WINCH),
    ("ALRM", Signal::ALARM),
];

/// As whom a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) uid: u32,
    pub(super) gid: u32,
    home: String,
}

/// The program and its arguments; empty when there are none.
pub(super) fn argv(spec: &InstanceSpec) -> Vec<String> {
    let parts = [&spec.entrypoint, &spec.command];
    parts.into_iter().flatten().flatten().cloned().collect()
}

/// Everything that can be known to be wrong before a start.
pub(super) fn check(spec: &InstanceSpec) -> Result<(), String> {
    if argv(spec).is_empty() {
        return Err("the process runtime needs a command".to_owned());
    }
    stop_signal(spec)?;
    credentials(spec)?;
    for mount in &spec.mounts {
        if !mount.source.is_dir() {
            return Err(format!("{} is not a directory", mount.source.display()));
        }
        let target = Path::new(&mount.target);
        let plain = target.is_absolute() && !mount.target.split('/').any(|part| part == "..");
        if !plain || target.parent().is_none() {
            return Err(format!(
                "{:?} is not an absolute path below /",
                mount.target
            ));
        }
    }
    Ok(())
}

/// Whether the program is here and can be run. What lies on a volume is seen at the start.
pub(super) fn locate(spec: &InstanceSpec) -> Result<(), String> {
    let argv = argv(spec);
    let Some(name) = argv.first().filter(|name| !name.is_empty()) else {
        return Err("the process runtime needs a command".to_owned());
    };
    if name.contains('/') {
        let path = Path::new(working_dir(spec)).join(name);
        if spec
            .mounts
            .iter()
            .any(|mount| path.starts_with(&mount.target))
        {
            return Ok(());
        }
        return if !path.exists() {
            Err(format!("{} does not exist on this host", path.display()))
        } else if is_program(&path) {
            Ok(())
        } else {
            Err(format!("{} is not an executable file", path.display()))
        };
    }
    let search = spec
        .environment
        .get("PATH")
        .map_or(DEFAULT_PATH, String::as_str);
    let mut places = search
        .split(':')
        .map(|directory| PathBuf::from(directory).join(name));
    if places.any(|path| is_program(&path)) {
        return Ok(());
    }
    Err(format!(
        "there is no program of this name on this host in {search}"
    ))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn working_dir(spec: &InstanceSpec) -> &str {
    spec.working_dir.as_deref().unwrap_or("/")
}

/// What asks it to stop: `SIGTERM`, `TERM` or a number.
pub(super) fn stop_signal(spec: &InstanceSpec) -> Result<Signal, String> {
    let Some(text) = &spec.stop_signal else {
        return Ok(Signal::TERM);
    };
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let known = [("KILL", Signal::KILL)]
        .into_iter()
        .chain(SIGNALS)
        .find(|(known, signal)| {
            name.eq_ignore_ascii_case(known) || name.parse() == Ok(signal.as_raw())
        });
    known.map(|(_, signal)| signal).ok_or_else(|| {
        let names: Vec<_> = SIGNALS
            .iter()
            .map(|(name, _)| format!("SIG{name}"))
            .collect();
        format!(
            "{text:?} is not a stop signal: use SIGKILL, {}",
            names.join(", ")
        )
    })
}

/// As whom it runs: `None` is root.
pub(super) fn credentials(spec: &InstanceSpec) -> Result<Option<Credentials>, String> {
    let Some(user) = &spec.user else {
        return Ok(None);
    };
    let read = |path: &str| {
        fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
    };
    find_user(user, &read("/etc/passwd")?, &read("/etc/group")?).map(Some)
}

/// Resolves `USER[:GROUP]`, each a name or a number.
fn find_user(text: &str, passwd: &str, groups: &str) -> Result<Credentials, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&user) || fields.get(2) == Some(&user));
    let field = |index: usize| entry.as_ref().and_then(|fields| fields.get(index).copied());
    let unknown = || format!("this host knows no user {user:?}");
    let uid = field(2).unwrap_or(user).parse().map_err(|_| unknown())?;
    let gid = match group {
        None => field(3).unwrap_or("0").parse().map_err(|_| unknown())?,
        Some(group) => groups
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&group))
            .and_then(|fields| fields.get(2).copied())
            .unwrap_or(group)
            .parse()
            .map_err(|_| format!("this host knows no group {group:?}"))?,
    };
    Ok(Credentials {
        uid,
        gid,
        home: field(5).unwrap_or("/").to_owned(),
    })
}

/// A command in the environment of the application. `None` for no arguments at all.
pub(super) fn command(
    spec: &InstanceSpec,
    argv: &[String],
    credentials: Option<&Credentials>,
) -> Option<Command> {
    let (program, arguments) = argv.split_first()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", DEFAULT_PATH);
    command.env("HOME", credentials.map_or("/root", |who| who.home.as_str()));
    command
        .envs(&spec.environment)
        .current_dir(working_dir(spec));
    if let Some(who) = credentials {
        command.uid(who.uid).gid(who.gid);
    }
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nredis:x:107:114::/var/lib/redis:/bin/false\n";
    const GROUPS: &str = "root:x:0:\nredis:x:114:\ntape:x:26:\n";

    #[test]
    fn users_are_names_or_numbers() {
        let found = |text| {
            let who = find_user(text, PASSWD, GROUPS).ok()?;
            Some((who.uid, who.gid, who.home))
        };
        let redis = "/var/lib/redis".to_owned();
        assert_eq!(found("redis"), Some((107, 114, redis.clone())));
        assert_eq!(found("107"), Some((107, 114, redis.clone())));
        assert_eq!(found("redis:tape"), Some((107, 26, redis)));
        assert_eq!(found("4242:4343"), Some((4242, 4343, "/".to_owned())));
        assert_eq!(found("nobody-here"), None);
        assert_eq!(found("redis:nothing-here"), None);
    }
}
