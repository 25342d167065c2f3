//! Process 1 of an application: sets up its namespaces, starts the command, hands signals on,
//! reaps what is orphaned, and ends with the command. Its end takes everything with it.
//!
//! The command is not process 1 itself because the kernel ignores a signal to process 1 that it
//! has no handler for: SIGTERM would not stop a program that relies on the default action.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, ExitCode, Stdio};

use rehome_sys::namespace::{Namespace, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

use super::{FAILED, Report, one_thread, say};
use crate::runtime::process::files::Record;
use crate::runtime::process::{network, program};

/// What a shell ends with for a command that cannot be run, or is not there.
const CANNOT_RUN: i32 = 126;
const NOT_FOUND: i32 = 127;

pub(super) fn run(record: &Record) -> ExitCode {
    let code = match set_up_and_run(record) {
        Ok(code) => {
            say(&Report::Ended { code });
            code
        }
        Err((reason, code)) => {
            say(&Report::Failed { reason, code });
            code
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(FAILED))
}

type Failure = (String, i32);

fn failure(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let attempt = attempt.into();
    move |error| (format!("cannot {attempt}: {error}"), i32::from(FAILED))
}

fn set_up_and_run(record: &Record) -> Result<i32, Failure> {
    let all = [
        Namespace::Mount,
        Namespace::Network,
        Namespace::Uts,
        Namespace::Ipc,
    ];
    unshare(&all).map_err(failure("make namespaces"))?;
    say(&Report::Ready);
    // The supervisor answers when the cgroup and the network are there. If it is gone, this ends.
    let mut go = [0; 1];
    io::stdin()
        .read_exact(&mut go)
        .map_err(failure("hear the supervisor"))?;
    mount_all(record)?;
    if let Some(name) = &record.spec.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|error| failure("set the host name")(error.into()))?;
    }
    let runtime = one_thread().map_err(failure("start a runtime"))?;
    runtime.block_on(run_command(record))
}

fn mount_all(record: &Record) -> Result<(), Failure> {
    let attempt = |what: &str| failure(format!("mount {what}"));
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|error| failure("detach its mounts from the host's")(error.into()))?;
    // Outer directories first, so that one volume can lie in another.
    let mut mounts: Vec<_> = record.spec.mounts.iter().collect();
    mounts.sort_by_key(|mount| Path::new(&mount.target).components().count());
    for volume in mounts {
        fs::create_dir_all(&volume.target).map_err(failure(format!("make {}", volume.target)))?;
        mount_bind(&volume.source, volume.target.as_str())
            .map_err(|error| attempt(&volume.target)(error.into()))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None::<&std::ffi::CStr>)
        .map_err(|error| attempt("/proc")(error.into()))
}

async fn run_command(record: &Record) -> Result<i32, Failure> {
    network::settle_inside(&record.link)
        .await
        .map_err(|error| {
            let reason = rehome_runtime::report::Report(&error).to_string();
            (
                format!("cannot set up its network: {reason}"),
                i32::from(FAILED),
            )
        })?;
    let mut ended = signal(SignalKind::child()).map_err(failure("hear of its end"))?;
    let mut forwarded = Vec::new();
    for (name, number) in program::SIGNALS {
        let stream = signal(SignalKind::from_raw(number.as_raw()))
            .map_err(failure(format!("handle SIG{name}")))?;
        forwarded.push((number, stream));
    }
    let child = spawn(record)?;
    say(&Report::Started);
    let main = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let main =
        main.ok_or_else(|| failure("know its process")(io::ErrorKind::InvalidData.into()))?;
    loop {
        if let Some(code) = reap(main) {
            return Ok(code);
        }
        if let Event::Signal(signal) = next_event(&mut ended, &mut forwarded).await {
            // It may be ending just now.
            let _ended = kill_process(main, signal);
        }
    }
}

enum Event {
    ChildEnded,
    Signal(Signal),
}

async fn next_event(ended: &mut SignalStream, forwarded: &mut [(Signal, SignalStream)]) -> Event {
    std::future::poll_fn(|cx| {
        if ended.poll_recv(cx).is_ready() {
            return std::task::Poll::Ready(Event::ChildEnded);
        }
        for (signal, stream) in forwarded.iter_mut() {
            if Pin::new(stream).poll_recv(cx).is_ready() {
                return std::task::Poll::Ready(Event::Signal(*signal));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Reaps whatever has ended, and returns the exit status of the command if it is among them.
fn reap(main: Pid) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((process, status))) = wait(WaitOptions::NOHANG) {
        if process == main {
            code = Some(code_of(status));
        }
    }
    code
}

fn code_of(status: WaitStatus) -> i32 {
    let signal = status
        .terminating_signal()
        .map(|signal| 128_i32.saturating_add(signal));
    status.exit_status().or(signal).unwrap_or(i32::from(FAILED))
}

fn spawn(record: &Record) -> Result<Child, Failure> {
    let credentials = program::credentials(&record.spec).map_err(|reason| (reason, CANNOT_RUN))?;
    let argv = program::argv(&record.spec);
    let output = || io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
    if let Some(who) = &credentials {
        // So that it can open /dev/stdout, as many programs do for their log.
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(who.uid),
            rustix::fs::Gid::from_raw(who.gid),
        );
        rustix::fs::fchown(io::stderr(), Some(uid), Some(gid))
            .map_err(|error| failure("hand its output over")(error.into()))?;
    }
    let mut command = program::command(&record.spec, &argv, credentials.as_ref())
        .ok_or_else(|| ("there is no command".to_owned(), CANNOT_RUN))?;
    command.stdin(Stdio::null());
    command.stdout(output().map_err(failure("hand its output over"))?);
    command.spawn().map_err(|error| not_run(&command, &error))
}

fn not_run(command: &Command, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        CANNOT_RUN
    };
    (
        format!(
            "cannot run {}: {error}",
            command.get_program().to_string_lossy()
        ),
        code,
    )
}
