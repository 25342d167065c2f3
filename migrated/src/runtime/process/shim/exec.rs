//! Runs a command beside an application, in its namespaces and cgroup, as its user and with its
//! environment. Ends with the command's status.

use std::io;
use std::process::{ExitCode, Stdio};

use rehome_sys::child::kill_with_parent;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use std::os::fd::AsFd;

use super::FAILED;
use crate::runtime::process::cgroup::Cgroup;
use crate::runtime::process::files::Record;
use crate::runtime::process::pid::ProcessId;
use crate::runtime::process::program;

pub(super) fn run(record: &Record, init: ProcessId, command: &[String]) -> ExitCode {
    let code = enter_and_run(record, init, command);
    ExitCode::from(
        code.ok()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(FAILED),
    )
}

fn enter_and_run(record: &Record, init: ProcessId, command: &[String]) -> io::Result<i32> {
    let ended = || io::Error::other("the application has ended");
    let process = init.open_descriptor().ok_or_else(ended)?;
    let credentials = program::credentials(&record.spec).map_err(io::Error::other)?;
    // Without the limits it runs as well.
    let _unlimited = Cgroup::find(&record.cgroup).add(std::process::id());
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    move_into_thread_name_spaces(process.as_fd(), all)?;
    let mut command = program::command(&record.spec, command, credentials.as_ref())
        .ok_or_else(|| io::Error::other("there is no command"))?;
    command.stdin(Stdio::null());
    kill_with_parent(&mut command);
    command
        .status()?
        .code()
        .ok_or_else(|| io::Error::other("a signal ended it"))
}
