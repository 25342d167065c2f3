//! The program itself: `--check`, SIGHUP, SIGTERM.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use rehome_runtime::http_client::HttpClient;
use rehome_shared::api::proxy::ReloadReply;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::certificates::Authority;
use crate::host::{LIMIT, ask, free_port, get, read_line, unused_address};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_proxyd");

/// Ends with the value, also when a test fails.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.0.id())?;
        Ok(kill_process(Pid::from_raw(pid).context("no pid")?, signal)?)
    }

    pub(crate) async fn exit(&mut self) -> Result<std::process::ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            ensure!(started.elapsed() < LIMIT, "it does not end");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn check(file: &Path) -> Result<Output> {
    Ok(Command::new(PROGRAM).arg("--check").arg(file).output()?)
}

#[test]
fn check_names_what_is_wrong_and_exits_with_2() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("proxyd.yml");
    fs::write(&file, "version: 1\n")?;
    ensure!(check(&file)?.status.success());
    fs::write(&file, "version: 1\nlimitz: {}\n")?;
    let output = check(&file)?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(2) && said.contains("limitz"),
        "{said}"
    );
    fs::write(&file, "version: 1\nlog: {filter: proxyd=loudest}\n")?;
    let output = check(&file)?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(2) && said.contains("loudest"),
        "{said}"
    );
    ensure!(check(&directory.path().join("absent"))?.status.code() == Some(2));
    Ok(())
}

#[test]
fn check_reads_the_certificates_that_a_file_names() -> Result<()> {
    let cluster = Authority::new()?;
    let files = cluster.files("10.0.0.1")?;
    let [ca, certificate, key] =
        [&files.ca, &files.certificate, &files.key].map(|file| file.display().to_string());
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("proxyd.yml");
    let checked = |host: &str| {
        let tls = format!("{{ca: {ca}, certificate: {certificate}, key: {key}}}");
        let text = format!("version: 1\nhost: {host}\ntrunk: {{tls: {tls}}}\n");
        fs::write(&file, text)?;
        let output = check(&file)?;
        anyhow::Ok((output.status.code(), String::from_utf8(output.stderr)?))
    };
    let (code, said) = checked("10.0.0.1")?;
    ensure!(code == Some(0), "{said}");
    let (code, said) = checked("10.0.0.2")?;
    let names_it = said.contains("this host is 10.0.0.2");
    ensure!(code == Some(2) && names_it, "{said}");
    fs::remove_file(&files.key)?;
    let (code, said) = checked("10.0.0.1")?;
    ensure!(code == Some(2) && said.contains(&key), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_hangup_applies_a_right_file_and_rejects_a_wrong_one() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("proxyd.yml");
    let (app, port, address) = (App::start("a").await?, free_port().await?, unused_address());
    let page = SocketAddr::from((address, free_port().await?));
    let trunk = free_port().await?;
    let config = |routes: &str| config(directory.path(), address, page, trunk, routes);
    fs::write(&file, config(""))?;
    let child = Command::new(PROGRAM)
        .arg("--config")
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()?;
    let mut running = Running(child);
    wait_for(page, "/healthz", "ok").await?;

    fs::write(&file, "version: 1\nroutes: nonsense\n")?;
    running.signal(Signal::HUP)?;
    wait_for(page, "/metrics", "reloads_total{result=\"rejected\"} 1").await?;
    let route = format!("{{external: {port}, backend: \"{}\"}}", app.addr);
    fs::write(&file, config(&route))?;
    running.signal(Signal::HUP)?;
    wait_for(page, "/metrics", "reloads_total{result=\"applied\"} 1").await?;
    let mut client = TcpStream::connect((address, port)).await?;
    ensure!(ask(&mut client, "x").await? == "a: x");

    running.signal(Signal::TERM)?;
    ensure!(running.exit().await?.success());
    let socket: PathBuf = directory.path().join("s");
    ensure!(!socket.exists(), "the control socket is left");
    Ok(())
}

/// Processor time used so far, in ticks of 10 ms.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no stat")?;
    let mut fields = fields.split_whitespace().skip(11);
    let (user, system) = (
        fields.next().context("no utime")?,
        fields.next().context("no stime")?,
    );
    Ok(user.parse::<u64>()? + system.parse::<u64>()?)
}

/// Has no more than one more descriptor from now on.
fn leave_one_descriptor(running: &Running) -> Result<Rlimit> {
    let pid = Pid::from_raw(i32::try_from(running.0.id())?).context("no pid")?;
    let mut taken: Vec<u64> = fs::read_dir(format!("/proc/{}/fd", running.0.id()))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    taken.sort_unstable();
    // The first number that is free, and the limit behind it.
    let free = (0..).zip(&taken).find(|(number, fd)| number != *fd);
    let free = free.map_or(u64::try_from(taken.len())?, |(number, _)| number);
    let second = (free + 1..4096).find(|number| !taken.contains(number));
    let limit = Rlimit {
        current: second,
        maximum: Some(4096),
    };
    Ok(prlimit(Some(pid), Resource::Nofile, limit)?)
}

/// Waits until a log tells of something.
async fn is_told(log: &Path, what: &str) -> Result<()> {
    let started = Instant::now();
    while !fs::read_to_string(log)?.contains(what) {
        ensure!(started.elapsed() < LIMIT, "nothing is told of {what}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_want_of_descriptors_is_not_held_against_the_application() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("proxyd.yml");
    let (app, port, address) = (App::start("a").await?, free_port().await?, unused_address());
    let page = SocketAddr::from((address, free_port().await?));
    let route = format!("{{external: {port}, backend: \"{}\"}}", app.addr);
    fs::write(
        &file,
        config(directory.path(), address, page, free_port().await?, &route),
    )?;
    let log = directory.path().join("log");
    let child = Command::new(PROGRAM)
        .arg("--config")
        .arg(&file)
        .stderr(fs::File::create(&log)?)
        .spawn()?;
    let running = Running(child);
    wait_for(page, "/healthz", "ok").await?;
    let pid = Pid::from_raw(i32::try_from(running.0.id())?).context("no pid")?;
    let started = Instant::now();
    let mut client = loop {
        let before = leave_one_descriptor(&running)?;
        // The client takes the last one; none is left to connect with.
        let mut client = TcpStream::connect((address, port)).await?;
        client.write_all(b"x\n").await?;
        let is_short = is_told(&log, "held back or turned away");
        let early = tokio::select! {
            told = is_short => { told?; None }
            line = read_line(&mut client) => Some(line?),
        };
        let enough = Rlimit {
            current: before.current.min(Some(4096)),
            maximum: Some(4096),
        };
        prlimit(Some(pid), Resource::Nofile, enough)?;
        if early.is_none() {
            break client;
        }
        // What was asked for was closed when the descriptors had been counted: it had two.
        ensure!(started.elapsed() < LIMIT, "{early:?}");
    };
    ensure!(read_line(&mut client).await? == "a: x");
    wait_for(page, "/metrics", "shed_total{reason=\"descriptors\"}").await?;
    wait_for(page, "/metrics", "rehome_proxy_connect_failures_total 0").await
}

#[tokio::test]
async fn a_broken_application_of_a_client_that_does_not_read_costs_nothing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("proxyd.yml");
    let (port, address) = (free_port().await?, unused_address());
    let application = TcpListener::bind((address, 0)).await?;
    let page = SocketAddr::from((address, free_port().await?));
    let backend = application.local_addr()?;
    let route = format!("{{external: {port}, backend: \"{backend}\"}}");
    fs::write(
        &file,
        config(directory.path(), address, page, free_port().await?, &route),
    )?;
    let child = Command::new(PROGRAM)
        .arg("--config")
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()?;
    let running = Running(child);
    wait_for(page, "/healthz", "ok").await?;
    let _client = TcpStream::connect((address, port)).await?;
    let (mut server, _) = application.accept().await?;
    let block = vec![7; 1 << 16];
    while let Ok(written) = timeout(Duration::from_millis(300), server.write(&block)).await {
        written?;
    }
    SockRef::from(&server).set_linger(Some(Duration::ZERO))?;
    drop(server);
    let used = ticks(running.0.id())?;
    sleep(Duration::from_secs(1)).await;
    let used = ticks(running.0.id())?.saturating_sub(used);
    ensure!(used < 30, "{used} of 100 ticks in a second of waiting");
    wait_for(page, "/metrics", "connections_active{route=").await
}

#[tokio::test]
async fn a_reload_by_the_control_socket_answers_what_came_of_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("proxyd.yml");
    let (app, address) = (App::start("a").await?, unused_address());
    let page = SocketAddr::from((address, free_port().await?));
    let trunk = free_port().await?;
    let config = |routes: &str| config(directory.path(), address, page, trunk, routes);
    fs::write(&file, config(""))?;
    let log = directory.path().join("log");
    let child = Command::new(PROGRAM)
        .arg("--config")
        .arg(&file)
        .stderr(fs::File::create(&log)?)
        .spawn()?;
    let _running = Running(child);
    wait_for(page, "/healthz", "ok").await?;
    let http = HttpClient::unix(&directory.path().join("s"));
    let ask = || {
        let none: Option<&()> = None;
        http.request_json::<_, ReloadReply>(Method::POST, "/v1/reload", none, LIMIT)
    };

    fs::write(&file, config("{external: 80}"))?;
    let error = ask().await.err().context("a wrong file was taken")?;
    ensure!(error.status() == Some(StatusCode::UNPROCESSABLE_ENTITY));
    let taken = std::net::TcpListener::bind((address, 0))?;
    let port = taken.local_addr()?.port();
    let route = format!("{{external: {port}, backend: \"{}\"}}", app.addr);
    fs::write(&file, config(&route))?;
    let error = ask().await.err().context("a taken port was had")?;
    ensure!(error.status() == Some(StatusCode::CONFLICT), "{error:?}");
    let said = format!("{:#}", anyhow::Error::from(error));
    ensure!(
        said.contains(&format!("port {port}/tcp")) && said.contains("in use"),
        "{said}"
    );
    // The log says the same, for those who reload by a signal.
    ensure!(fs::read_to_string(&log)?.contains(&format!("port {port}/tcp")));
    wait_for(page, "/metrics", "reloads_total{result=\"rejected\"} 2").await?;

    drop(taken);
    let reply = ask().await?;
    ensure!(reply.missing.is_empty(), "{reply:?}");
    let mut client = TcpStream::connect((address, port)).await?;
    ensure!(crate::host::ask(&mut client, "x").await? == "a: x");
    fs::write(&file, config("").replace("/state", "/elsewhere"))?;
    let error = ask().await.err().context("the state was moved")?;
    let said = format!("{:#}", anyhow::Error::from(error));
    ensure!(said.contains("state cannot change"), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_connection_once_it_is_asked_for() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("proxyd.yml");
    let (app, port, address) = (App::start("a").await?, free_port().await?, unused_address());
    let page = SocketAddr::from((address, free_port().await?));
    let trunk = free_port().await?;
    let route = format!("{{external: {port}, backend: \"{}\"}}", app.addr);
    let config = |filter: &str| {
        let rest = config(directory.path(), address, page, trunk, &route);
        format!("{rest}log: {{format: json, filter: \"{filter}\"}}\n")
    };
    fs::write(&file, config("info"))?;
    let log = directory.path().join("log");
    let child = Command::new(PROGRAM)
        .arg("--config")
        .arg(&file)
        .stderr(fs::File::create(&log)?)
        .spawn()?;
    let running = Running(child);
    wait_for(page, "/healthz", "ok").await?;
    let visit = || async {
        let mut client = TcpStream::connect((address, port)).await?;
        ensure!(ask(&mut client, "x").await? == "a: x");
        drop(client);
        Ok(())
    };
    visit().await?;
    wait_for(page, "/metrics", "result=\"finished\"} 1").await?;
    ensure!(!fs::read_to_string(&log)?.contains("\"target\":\"access\""));

    fs::write(&file, config("info,access=debug"))?;
    running.signal(Signal::HUP)?;
    wait_for(page, "/metrics", "reloads_total{result=\"applied\"} 1").await?;
    // The filter follows what the metric tells.
    let started = Instant::now();
    let line = loop {
        visit().await?;
        let text = fs::read_to_string(&log)?;
        let mut lines = text.lines().map(str::to_owned);
        if let Some(line) = lines.find(|line| line.contains("\"target\":\"access\"")) {
            break line;
        }
        ensure!(started.elapsed() < LIMIT, "{text}");
        sleep(Duration::from_millis(50)).await;
    };
    for wanted in [
        "\"end\":\"finished\"".to_owned(),
        format!("\"route\":\"{port}/tcp\""),
        format!("\"upstream\":\"{}\"", app.addr),
        "\"bytes_in\":2".to_owned(),
        "\"bytes_out\":5".to_owned(),
        "\"client.addr\":\"127.".to_owned(),
    ] {
        ensure!(line.contains(&wanted), "{wanted} is not in {line}");
    }
    Ok(())
}

pub(crate) fn config(
    base: &Path,
    address: Ipv4Addr,
    page: SocketAddr,
    trunk: u16,
    routes: &str,
) -> String {
    let base = base.display();
    format!(
        "version: 1\nsocket: {base}/s\nstate: {base}/state\nmetrics: {page}\n\
         trunk: {{listen: \"{address}:{trunk}\"}}\nlisten: [\"{address}\"]\nroutes: [{routes}]\n"
    )
}

pub(crate) async fn wait_for(page: SocketAddr, path: &str, text: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        match get(page, path).await {
            Ok(body) if body.contains(text) => return Ok(()),
            Ok(_) | Err(_) if started.elapsed() < LIMIT => sleep(Duration::from_millis(20)).await,
            Ok(body) => anyhow::bail!("{text} is not in {body}"),
            Err(error) => return Err(error),
        }
    }
}
