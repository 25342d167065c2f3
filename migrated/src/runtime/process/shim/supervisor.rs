//! The supervisor of one instance: starts init, connects its network, keeps its output, and when
//! it has ended cleans up and writes down how.
//!
//! It holds a lock as long as it lives, so that an instance never has two. The kernel kills init
//! when the supervisor ends, so that an instance never has none.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use rehome_runtime::report::Report as Chain;
use rehome_sys::child::kill_with_parent;
use rehome_sys::namespace::{Namespace, unshare};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::timeout;

use super::{Answer, FAILED, Report, STAGE, Stage, one_thread, say};
use crate::runtime::process::cgroup::{Cgroup, Limits};
use crate::runtime::process::files::{self, Phase, Record, Status};
use crate::runtime::process::log::{self, Log};
use crate::runtime::process::pid::{Process, ProcessId};
use crate::runtime::process::{network, program};

/// How long each step of a start may take.
const STEP: Duration = Duration::from_secs(20);

/// How long the output may go on after the end: what is in the pipe.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long what was killed may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// How many lines of output tell why an application ended.
const REASON_LINES: u32 = 5;

/// The most that is kept of a reason.
const REASON_LENGTH: usize = 1000;

/// Init as it was spawned, with the other ends of its pipes.
struct Spawned {
    child: Child,
    go: ChildStdin,
    reports: OwnedFd,
    output: OwnedFd,
}

pub(super) fn run(record: &Record, spec: &Path) -> ExitCode {
    let prepared = lock(record).and_then(|lock| Ok((lock, Log::open(&record.log)?)));
    let (_lock, mut log) = match prepared {
        Ok(prepared) => prepared,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            say(&Answer::Supervised);
            return ExitCode::from(FAILED);
        }
        Err(error) => {
            return fail(
                record,
                &format!("cannot prepare its files: {error}"),
                FAILED,
            );
        }
    };
    // A leader of a process group cannot do this, and then does not need it.
    let _leads_a_group = rustix::process::setsid();
    // Nothing of an earlier run may be left when init starts: it is looked for before.
    let runtime = match one_thread() {
        Ok(runtime) => runtime,
        Err(error) => return fail(record, &format!("cannot start a runtime: {error}"), FAILED),
    };
    if let Err(reason) = runtime.block_on(end_earlier(record)) {
        return fail(record, &reason, FAILED);
    }
    let spawned = match spawn_init(spec) {
        Ok(spawned) => spawned,
        Err(error) => return fail(record, &format!("cannot start its init: {error}"), FAILED),
    };
    runtime.block_on(supervise(record, spawned, &mut log))
}

fn lock(record: &Record) -> io::Result<File> {
    std::fs::create_dir_all(&record.run_dir)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(record.lock_path())?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Makes sure that nothing is left of a run whose supervisor was killed.
async fn end_earlier(record: &Record) -> Result<(), String> {
    let earlier = files::load::<Status>(&record.status_path()).ok().flatten();
    if let Some(Status {
        phase: Phase::Running { init, .. },
        ..
    }) = earlier
        && let Some(init) = init.open()
    {
        let ended = async {
            init.signal(Signal::KILL)?;
            init.ended(KILL_LIMIT).await
        };
        if !ended.await.map_err(|error| error.to_string())? {
            return Err("its earlier init does not end".to_owned());
        }
    }
    let cgroup = Cgroup::find(&record.cgroup);
    cgroup.kill();
    if cgroup.empty_within(KILL_LIMIT).await {
        return Ok(());
    }
    Err("processes of an earlier run do not end".to_owned())
}

/// Starts init in a process id namespace of its own. This process has one thread here, and stays
/// in its own namespace: only the first child goes elsewhere.
fn spawn_init(spec: &Path) -> io::Result<Spawned> {
    let own = File::open("/proc/self/ns/pid")?;
    let (output, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("process-shim")
        .arg(spec)
        .env_clear()
        .env("PATH", program::DEFAULT_PATH);
    command.env(STAGE, serde_json::to_string(&Stage::Init)?);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(write_end));
    kill_with_parent(&mut command);
    unshare(&[Namespace::Pid])?;
    let spawned = command.spawn();
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    let mut child = spawned?;
    let (go, reports) = (child.stdin.take(), child.stdout.take());
    match (go, reports) {
        (Some(go), Some(reports)) => Ok(Spawned {
            child,
            go,
            reports: reports.into(),
            output,
        }),
        (None, _) | (_, None) => Err(io::Error::other("a pipe is missing")),
    }
}

/// Init as it is watched.
struct Watched {
    process: Process,
    reports: Lines<BufReader<Receiver>>,
    output: Receiver,
    stop: SignalStream,
}

async fn supervise(record: &Record, mut spawned: Spawned, log: &mut Log) -> ExitCode {
    let limits = Limits {
        memory: record.spec.mem_limit,
        cpu_shares: record.spec.cpu_shares,
    };
    let (cgroup, warnings) = Cgroup::create(&record.cgroup, limits);
    let code = match start(record, &mut spawned, &cgroup).await {
        Ok(mut watched) => {
            say(&Answer::Running { warnings });
            watch(record, &mut watched, log).await
        }
        Err((reason, code)) => {
            // Whatever was started ends here; the failure is what counts.
            let _ended = spawned.child.kill();
            log.append(format!("rehome: {reason}\n").as_bytes());
            clean_up(record, &mut spawned.child, &cgroup).await;
            return fail(record, &reason, code);
        }
    };
    let status = clean_up(record, &mut spawned.child, &cgroup).await;
    let code = code.or(status);
    let reason = (code != Some(0)).then(|| last_words(&record.log, code));
    write_status(record, Phase::Exited { code, reason });
    ExitCode::SUCCESS
}

type Failure = (String, u8);

async fn start(
    record: &Record,
    spawned: &mut Spawned,
    cgroup: &Cgroup,
) -> Result<Watched, Failure> {
    let failed = |attempt: &'static str| {
        move |error: io::Error| (format!("cannot {attempt}: {error}"), FAILED)
    };
    let number = spawned.child.id();
    let init = ProcessId::of(number).map_err(failed("find its init"))?;
    let process = init
        .open()
        .ok_or_else(|| ("its init ended at once".to_owned(), FAILED))?;
    let pipe = |end: &OwnedFd| {
        let end = end.try_clone().and_then(Receiver::from_owned_fd);
        end.map_err(failed("hear its init"))
    };
    let mut watched = Watched {
        process,
        reports: BufReader::new(pipe(&spawned.reports)?).lines(),
        output: pipe(&spawned.output)?,
        stop: signal(SignalKind::terminate()).map_err(failed("handle SIGTERM"))?,
    };
    expect(&mut watched, "Ready", |report| {
        matches!(report, Report::Ready)
    })
    .await?;
    cgroup.add(number).map_err(failed("put it in its cgroup"))?;
    network::connect(&record.link, number)
        .await
        .map_err(|error| (format!("cannot connect it: {}", Chain(&error)), FAILED))?;
    spawned
        .go
        .write_all(b"g")
        .map_err(failed("let its init go"))?;
    expect(&mut watched, "Started", |report| {
        matches!(report, Report::Started)
    })
    .await?;
    let started_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    write_status(record, Phase::Running { init, started_at });
    Ok(watched)
}

/// Waits for one report; another one is a failure.
async fn expect(
    watched: &mut Watched,
    what: &str,
    is_it: fn(&Report) -> bool,
) -> Result<(), Failure> {
    let line = match timeout(STEP, watched.reports.next_line()).await {
        Ok(Ok(Some(line))) => line,
        Ok(Ok(None)) => return Err(("its init ended early".to_owned(), FAILED)),
        Ok(Err(error)) => return Err((format!("cannot hear its init: {error}"), FAILED)),
        Err(_) => return Err((format!("its init did not get to {what}"), FAILED)),
    };
    match serde_json::from_str(&line) {
        Ok(report) if is_it(&report) => Ok(()),
        Ok(Report::Failed { reason, code }) => Err((reason, u8::try_from(code).unwrap_or(FAILED))),
        Ok(Report::Ready | Report::Started | Report::Ended { .. }) | Err(_) => {
            Err((format!("its init said {line:?} instead of {what}"), FAILED))
        }
    }
}

/// What can happen to a running instance.
enum Event {
    Output(usize),
    Report(Report),
    Stop,
    Ended,
}

/// Keeps the output until the end. Returns the exit status that init reported.
async fn watch(record: &Record, watched: &mut Watched, log: &mut Log) -> Option<i32> {
    let mut buffer = vec![0; 16 * 1024];
    let mut code = None;
    loop {
        match next_event(watched, &mut buffer).await {
            Event::Output(length) => log.append(buffer.get(..length).unwrap_or_default()),
            Event::Report(report) => code = code.or(code_in(&report)),
            Event::Stop => {
                let signal = program::stop_signal(&record.spec).unwrap_or(Signal::TERM);
                // The next event tells if it has ended.
                let _ended = watched.process.signal(signal);
            }
            Event::Ended => break,
        }
    }
    // What is still in the pipes; their writers are gone, or were given away by the application.
    let rest = async {
        while let Ok(Some(line)) = watched.reports.next_line().await {
            code = code.or(serde_json::from_str(&line).ok().as_ref().and_then(code_in));
        }
        while let Ok(length @ 1..) = watched.output.read(&mut buffer).await {
            log.append(buffer.get(..length).unwrap_or_default());
        }
    };
    let _still_open = timeout(LAST_WORDS, rest).await;
    code
}

async fn next_event(watched: &mut Watched, buffer: &mut [u8]) -> Event {
    let Watched {
        process,
        reports,
        output,
        stop,
    } = watched;
    // Every arm is cancel safe: reads and lines take nothing before they are ready, signals and
    // the end of a process stay pending.
    tokio::select! {
        Ok(length @ 1..) = output.read(buffer) => Event::Output(length),
        Ok(Some(line)) = reports.next_line() => match serde_json::from_str(&line) {
            Ok(report) => Event::Report(report),
            Err(_) => Event::Output(0),
        },
        Some(()) = stop.recv() => Event::Stop,
        _ended = process.end() => Event::Ended,
    }
}

fn code_in(report: &Report) -> Option<i32> {
    match report {
        Report::Ended { code } => Some(*code),
        Report::Ready | Report::Started | Report::Failed { .. } => None,
    }
}

/// Removes what init has left outside itself, and returns what it ended with.
async fn clean_up(record: &Record, init: &mut Child, cgroup: &Cgroup) -> Option<i32> {
    // Init has ended or was killed, so this waits for the kernel alone.
    let status = init.wait().ok();
    cgroup.kill();
    if !cgroup.empty_within(KILL_LIMIT).await {
        return None;
    }
    cgroup.remove();
    network::disconnect(&record.link).await;
    status.and_then(|status| {
        status
            .code()
            .or_else(|| status.signal().map(|signal| 128_i32.saturating_add(signal)))
    })
}

/// The end of the output, for people.
fn last_words(path: &Path, code: Option<i32>) -> String {
    let how = match code {
        Some(code @ 129..) => format!("ended by signal {}", code.saturating_sub(128)),
        Some(code) => format!("ended with status {code}"),
        None => "ended".to_owned(),
    };
    let tail = log::tail(path, REASON_LINES);
    let skip = tail.chars().count().saturating_sub(REASON_LENGTH);
    let tail: String = tail.chars().skip(skip).collect();
    if tail.is_empty() {
        how
    } else {
        format!("{how}: {tail}")
    }
}

fn write_status(record: &Record, phase: Phase) {
    let write = || -> Result<(), String> {
        let supervisor = ProcessId::of(std::process::id()).map_err(|error| error.to_string())?;
        let status = Status {
            instance: record.instance.clone(),
            supervisor,
            phase,
        };
        files::save(&record.status_path(), &status).map_err(|error| Chain(&error).to_string())
    };
    if let Err(reason) = write()
        && let Ok(mut log) = Log::open(&record.log)
    {
        log.append(format!("rehome: cannot write the status: {reason}\n").as_bytes());
    }
}

fn fail(record: &Record, reason: &str, code: u8) -> ExitCode {
    let reason = reason.to_owned();
    let phase = Phase::Exited {
        code: Some(i32::from(code)),
        reason: Some(reason.clone()),
    };
    write_status(record, phase);
    say(&Answer::Failed { reason });
    ExitCode::from(FAILED)
}
