//! The process runtime with real processes, namespaces and cgroups. Needs root.

#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "a test that cannot run here says so")]

#[path = "process_runtime/host.rs"]
mod host;
#[path = "process_runtime/throttle.rs"]
mod throttle;

use std::io::Read;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use migrated::runtime::process::ProcessRuntime;
use migrated::runtime::{InstanceState, Mount, Runtime, RuntimeError, Stopped};
use rehome_shared::ids::Epoch;
use rehome_shared::units::Bytes;

use host::{
    GRACE, Host, LIMIT, ask_redis, mark, redis, report, runs_with_argument, shell, spec, until,
};

type Test = anyhow::Result<()>;

#[test]
fn an_application_lives_from_create_to_remove() -> Test {
    let Some(host) = Host::new(1)? else {
        return Ok(());
    };
    let mut spec = redis("redis")?;
    spec.epoch = Epoch(7);
    let name = &spec.application;
    host.run(host.runtime.ping())?;
    host.run(host.runtime.ensure_image(&spec, &|_| {}))?;
    let created = host.run(host.runtime.create(&spec))?;
    assert_eq!(
        (created.state, created.address),
        (InstanceState::Created, None)
    );

    let started = host.run(host.runtime.start(name))?;
    assert_eq!(started.state, InstanceState::Running);
    assert_eq!(
        (started.epoch, started.config_hash.as_str()),
        (Epoch(7), "hash-1")
    );
    assert!(ask_redis(&started, "PING")?.starts_with("+PONG"));
    assert_eq!(host.run(host.runtime.start(name))?, started, "start again");
    assert_eq!(
        host.run(host.runtime.create(&spec))?,
        started,
        "create again"
    );
    assert_eq!(
        host.run(host.runtime.list())?,
        std::slice::from_ref(&started)
    );
    assert_eq!(
        host.run(host.runtime.stop(name, GRACE))?,
        Stopped::Gracefully
    );
    assert_eq!(
        host.run(host.runtime.stop(name, GRACE))?,
        Stopped::NotRunning
    );
    assert_eq!(
        host.state(name)?,
        InstanceState::Exited {
            code: Some(0),
            reason: None
        }
    );
    assert!(
        host.run(host.runtime.log_tail(name, 50))?
            .contains("bye bye")
    );

    let again = host.run(host.runtime.start(name))?;
    assert_eq!(again.address, started.address);
    assert_ne!(again.id, started.id);
    host.run(host.runtime.stop(name, GRACE))?;
    host.run(host.runtime.remove(name))?;
    host.run(host.runtime.remove(name))?;
    assert_eq!(host.run(host.runtime.list())?, []);
    Ok(())
}

#[test]
fn what_runs_is_neither_replaced_nor_removed() -> Test {
    let Some(host) = Host::new(2)? else {
        return Ok(());
    };
    let mut spec = spec("app", &["sleep", "600"])?;
    host.launch(&spec)?;
    let refused = host.run(host.runtime.remove(&spec.application));
    assert!(
        matches!(refused, Err(RuntimeError::Other { .. })),
        "{refused:?}"
    );
    spec.config_hash = "hash-2".to_owned();
    let refused = host.run(host.runtime.create(&spec));
    assert!(
        matches!(refused, Err(RuntimeError::Create { .. })),
        "{refused:?}"
    );
    host.run(host.runtime.stop(&spec.application, GRACE))?;
    let replaced = host.run(host.runtime.create(&spec))?;
    assert_eq!(
        (replaced.state, replaced.config_hash.as_str()),
        (InstanceState::Created, "hash-2")
    );
    Ok(())
}

#[test]
fn two_applications_use_the_same_internal_port() -> Test {
    let Some(host) = Host::new(3)? else {
        return Ok(());
    };
    let one = host.launch(&redis("one")?)?;
    let two = host.launch(&redis("two")?)?;
    assert_ne!(one.address, two.address);
    ask_redis(&one, "SET who one")?;
    ask_redis(&two, "SET who two")?;
    assert!(ask_redis(&one, "GET who")?.contains("one"));
    Ok(())
}

#[test]
fn a_running_application_is_adopted() -> Test {
    let Some(mut host) = Host::new(4)? else {
        return Ok(());
    };
    let started = host.launch(&redis("redis")?)?;
    ask_redis(&started, "SET key kept")?;
    host.runtime = ProcessRuntime::new(host.config.clone());
    assert_eq!(
        host.run(host.runtime.list())?,
        std::slice::from_ref(&started)
    );
    assert_eq!(host.run(host.runtime.start(&started.application))?, started);
    assert!(ask_redis(&started, "GET key")?.contains("kept"));
    assert_eq!(
        host.run(host.runtime.stop(&started.application, GRACE))?,
        Stopped::Gracefully
    );
    Ok(())
}

#[test]
fn volumes_lie_inside_and_not_outside() -> Test {
    let Some(host) = Host::new(5)? else {
        return Ok(());
    };
    let volume = host.volume("volume")?;
    let target = host.directory.path().join("made/mountpoint");
    let script = format!("echo inside > {}/file; exec sleep 600", target.display());
    let mut spec = shell("app", &script)?;
    spec.mounts.push(Mount {
        source: volume.clone(),
        target: target.display().to_string(),
    });
    host.launch(&spec)?;
    report(&volume.join("file"), "inside\n")?;
    assert!(target.is_dir(), "the mountpoint was made");
    assert!(
        !target.join("file").exists(),
        "the volume is not mounted outside"
    );
    assert!(!std::fs::read_to_string("/proc/self/mountinfo")?.contains("made/mountpoint"));
    Ok(())
}

#[test]
fn what_forks_and_ignores_signals_is_gone_after_a_stop() -> Test {
    let Some(host) = Host::new(6)? else {
        return Ok(());
    };
    let marks = [mark(1), mark(2)];
    let [child, orphan] = &marks;
    let script = format!(
        "trap '' TERM; (setsid sleep {orphan} &); sleep {child} & while :; do wait; sleep 1; done"
    );
    let started = host.launch(&shell("stubborn", &script)?)?;
    until("both", || {
        Ok(marks
            .iter()
            .all(|mark| runs_with_argument(mark))
            .then_some(()))
    })?;

    let grace = Duration::from_millis(300);
    let before = Instant::now();
    assert_eq!(
        host.run(host.runtime.stop(&started.application, grace))?,
        Stopped::Killed
    );
    assert!(before.elapsed() >= grace);
    for mark in &marks {
        assert!(!runs_with_argument(mark), "sleep {mark} is left");
    }
    let state = host.state(&started.application)?;
    assert!(
        matches!(
            state,
            InstanceState::Exited {
                code: Some(137),
                ..
            }
        ),
        "{state:?}"
    );
    Ok(())
}

#[test]
fn a_program_without_handlers_ends_gracefully() -> Test {
    let Some(host) = Host::new(7)? else {
        return Ok(());
    };
    let started = host.launch(&spec("plain", &["sleep", "600"])?)?;
    assert_eq!(
        host.run(host.runtime.stop(&started.application, LIMIT))?,
        Stopped::Gracefully
    );
    assert_eq!(host.ended(&started.application)?.0, Some(143));
    Ok(())
}

#[test]
fn the_chosen_stop_signal_is_sent() -> Test {
    let Some(host) = Host::new(8)? else {
        return Ok(());
    };
    let mut app = shell(
        "app",
        "trap 'exit 42' INT; echo ready; while :; do sleep 0.05; done",
    )?;
    app.stop_signal = Some("SIGINT".to_owned());
    host.launch(&app)?;
    until("its handler", || {
        Ok((host.run(host.runtime.log_tail(&app.application, 1))? == "ready").then_some(()))
    })?;
    assert_eq!(
        host.run(host.runtime.stop(&app.application, LIMIT))?,
        Stopped::Gracefully
    );
    assert_eq!(host.ended(&app.application)?.0, Some(42));
    Ok(())
}

#[test]
fn a_command_that_cannot_run_says_why() -> Test {
    let Some(host) = Host::new(9)? else {
        return Ok(());
    };
    let bad = spec("bad", &["/no/such/program"])?;
    let refused = host.run(host.runtime.ensure_image(&bad, &|_| {}));
    assert!(
        matches!(refused, Err(RuntimeError::ImageMissing { .. })),
        "{refused:?}"
    );
    host.run(host.runtime.create(&bad))?;
    let Err(RuntimeError::Start { reason, .. }) = host.run(host.runtime.start(&bad.application))
    else {
        anyhow::bail!("it started");
    };
    assert!(
        reason.contains("/no/such/program") && reason.contains("No such file"),
        "{reason}"
    );
    assert_eq!(host.ended(&bad.application)?, (Some(127), Some(reason)));
    assert_eq!(
        host.run(host.runtime.stop(&bad.application, GRACE))?,
        Stopped::NotRunning
    );
    Ok(())
}

#[test]
fn an_end_is_recorded_with_code_and_last_words() -> Test {
    let Some(host) = Host::new(10)? else {
        return Ok(());
    };
    let brief = shell(
        "brief",
        "echo to standard output; echo no config >&2; exit 3",
    )?;
    host.launch(&brief)?;
    let (code, reason) = host.ended(&brief.application)?;
    assert_eq!(code, Some(3));
    assert!(reason.is_some_and(|reason| reason.contains("no config")));
    let log = host.run(host.runtime.log_tail(&brief.application, 10))?;
    assert_eq!(log, "to standard output\nno config");
    Ok(())
}

#[test]
fn health_checks_run_inside_and_end_in_time() -> Test {
    let Some(host) = Host::new(11)? else {
        return Ok(());
    };
    let mut app = redis("redis")?;
    app.hostname = Some("inside".to_owned());
    app.environment
        .insert("FLAVOUR".to_owned(), "vanilla".to_owned());
    let started = host.launch(&app)?;
    ask_redis(&started, "PING")?;
    let exec = |script: &str, limit: Duration| {
        let command = ["bash", "-c", script].map(str::to_owned);
        host.run(host.runtime.exec(&app.application, &command, limit))
    };
    // Its own network, host name, processes and environment.
    assert!(exec("exec 3<>/dev/tcp/127.0.0.1/6379", LIMIT)?);
    assert!(exec("test \"$(hostname)\" = inside", LIMIT)?);
    assert!(exec(
        "tr '\\0' ' ' < /proc/1/cmdline | grep -q process-shim",
        LIMIT
    )?);
    assert!(exec("test \"$FLAVOUR\" = vanilla", LIMIT)?);
    assert!(!exec("exit 1", LIMIT)?);
    let mark = mark(3);
    assert!(!exec(
        &format!("sleep {mark}; true"),
        Duration::from_millis(300)
    )?);
    until("the end of the late check", || {
        Ok((!runs_with_argument(&mark)).then_some(()))
    })?;
    host.run(host.runtime.stop(&app.application, GRACE))?;
    let command = ["true".to_owned()];
    assert!(
        host.run(host.runtime.exec(&app.application, &command, LIMIT))
            .is_err()
    );
    Ok(())
}

#[test]
fn the_host_is_reachable_from_inside_by_its_own_address() -> Test {
    let Some(host) = Host::new(12)? else {
        return Ok(());
    };
    // The address of the host's default route, which is on none of the application's networks.
    let own = UdpSocket::bind("0.0.0.0:0")?;
    if own.connect("203.0.113.1:9").is_err() {
        println!("SKIPPED: this machine has no route, hence no address of its own");
        return Ok(());
    }
    let own = own.local_addr()?.ip();
    let listener = TcpListener::bind((own, 0))?;
    let port = listener.local_addr()?.port();
    let script = format!("echo hello > /dev/tcp/{own}/{port}; sleep 600");
    let started = host.launch(&spec("app", &["bash", "-c", &script])?)?;
    listener.set_nonblocking(true)?;
    let (mut stream, peer) = until("a connection from inside", || Ok(listener.accept().ok()))?;
    assert_eq!(Some(peer.ip()), started.address);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    assert_eq!(said, "hello\n");
    Ok(())
}

#[test]
fn a_killed_supervisor_takes_its_application_along() -> Test {
    let Some(host) = Host::new(13)? else {
        return Ok(());
    };
    let mark = mark(4);
    let app = spec("app", &["sleep", &mark])?;
    let started = host.launch(&app)?;
    let init = started
        .id
        .rsplit('-')
        .next()
        .context("no process in its id")?;
    let status = std::fs::read_to_string(format!("/proc/{init}/status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t"));
    let parent = parent.context("no parent")?.parse()?;
    let parent = rustix::process::Pid::from_raw(parent).context("no parent")?;
    rustix::process::kill_process(parent, rustix::process::Signal::KILL)?;
    assert_eq!(host.ended(&app.application)?.0, None);
    assert!(!runs_with_argument(&mark));
    let again = host.run(host.runtime.start(&app.application))?;
    assert_eq!(again.state, InstanceState::Running);
    Ok(())
}

#[test]
fn it_runs_as_its_user_with_its_environment_and_limits() -> Test {
    let Some(host) = Host::new(14)? else {
        return Ok(());
    };
    let volume = host.volume("volume")?;
    let target = host.directory.path().join("inside");
    std::os::unix::fs::chown(&volume, Some(65534), Some(65534))?;
    // The way to the mountpoint must be open for another user.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(host.directory.path(), mode)?;
    let script = format!(
        "echo started > /dev/stdout; {{ id -u; id -g; pwd; echo $COLOUR; \
         cat /proc/self/cgroup; echo end; }} > {}/out; exec sleep 600",
        target.display()
    );
    let mut app = shell("app", &script)?;
    app.user = Some("65534:65534".to_owned());
    app.working_dir = Some("/usr".to_owned());
    app.environment
        .insert("COLOUR".to_owned(), "green".to_owned());
    app.mem_limit = Some(Bytes(64 << 20));
    app.cpu_shares = Some(512);
    app.mounts.push(Mount {
        source: volume.clone(),
        target: target.display().to_string(),
    });
    host.launch(&app)?;
    let out = report(&volume.join("out"), "end\n")?;
    assert!(out.starts_with("65534\n65534\n/usr\ngreen\n"), "{out}");
    assert_eq!(
        host.run(host.runtime.log_tail(&app.application, 1))?,
        "started"
    );

    // Where the memory controller is one of cgroup v1; its paths are relative to its mount.
    let group = out
        .lines()
        .find_map(|line| Some(line.split_once(":memory:")?.1));
    let group = group.map(|group| {
        let name = group.rsplit('/').next().unwrap_or_default();
        Path::new("/sys/fs/cgroup/memory/rehome").join(name)
    });
    if let Some(group) = &group {
        let limit = std::fs::read_to_string(group.join("memory.limit_in_bytes"))?;
        assert_eq!(limit.trim(), (64 << 20).to_string());
    }
    host.run(host.runtime.stop(&app.application, GRACE))?;
    assert!(
        group.is_none_or(|group| !group.exists()),
        "the cgroup is gone"
    );
    Ok(())
}

#[test]
fn a_mount_source_that_is_not_there_is_refused() -> Test {
    let Some(host) = Host::new(15)? else {
        return Ok(());
    };
    let mut app = redis("app")?;
    let source = host.directory.path().join("absent");
    app.mounts.push(Mount {
        source,
        target: "/mnt/x".to_owned(),
    });
    let refused = host.run(host.runtime.create(&app));
    assert!(
        matches!(refused, Err(RuntimeError::Create { .. })),
        "{refused:?}"
    );
    assert_eq!(host.run(host.runtime.list())?, []);
    Ok(())
}

#[test]
fn nothing_is_left_on_the_host_after_a_stop() -> Test {
    let Some(host) = Host::new(16)? else {
        return Ok(());
    };
    let devices = || std::fs::read_dir("/sys/class/net").map(Iterator::count);
    let started = host.launch(&spec("app", &["sleep", "600"])?)?;
    let Some(IpAddr::V4(address)) = started.address else {
        anyhow::bail!("no address")
    };
    let device = Path::new("/sys/class/net").join(format!("rh{:08x}", address.to_bits()));
    assert!(device.exists(), "{} of {:?}", device.display(), devices()?);
    host.run(host.runtime.stop(&started.application, GRACE))?;
    assert!(!device.exists());
    Ok(())
}
