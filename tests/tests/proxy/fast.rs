//! The fast path: the kernel carries steady routes, and nobody notices when it begins or stops to,
//! whatever becomes of its rules, of the proxy, or of the gate.

mod life;
mod packets;
mod stage;

use std::cell::Cell;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::program;
use rehome_tests::proxy::{PATIENCE, Setup, Version, local, route};
use rehome_tests::wait::{wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::peer::accept;
use stage::{Load, PORT, Stage, ask, end, inside, leads, nft, table};

/// Whom the application sees behind a connection.
fn seen_by_application(stream: &TcpStream) -> anyhow::Result<String> {
    let mut line = String::new();
    (&mut &*stream).write_all(b"@")?;
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

#[test]
fn an_element_comes_and_goes_under_live_connections_and_nobody_notices() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    stage.open(Version(1, 0), &stage.a)?;
    let load = Load::begin(&stage)?;
    for generation in 1..4 {
        load.make_progress()?;
        stage.wait_for_kernel()?;
        // User space sees none now but those that it had.
        let seen = stage.seen()?;
        load.make_progress()?;
        let more = stage.seen()? - seen;
        ensure!(
            more <= Load::CLIENTS,
            "user space carried {more} connections"
        );
        let at = Version(1, generation);
        let counts = stage.proxy.prepare("db", at)?;
        ensure!(counts["active"].as_u64() >= Some(1), "{counts}");
        ensure!(!leads()?, "{}", table("rehome")?);
        stage.proxy.try_rollback("db", at)?.ok()?;
    }
    let answers = load.stop()?;
    println!("{answers} answers");
    Ok(())
}

#[test]
fn a_parked_gate_holds_new_clients_and_the_next_target_answers_them() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    let old = stage.connect(PORT)?;
    ensure!(ask(&old)? == b'A');
    stage.proxy.prepare("db", Version(2, 0))?;
    let mut new = stage.connect(PORT)?;
    new.write_all(b"?")?;
    wait_until(
        "it is held",
        PATIENCE,
        || Ok(stage.proxy.parked(PORT)? == 1),
    )?;
    // What flows goes on, and is waited for.
    ensure!(ask(&old)? == b'A');
    let drained = stage
        .proxy
        .try_drain("db", Version(2, 0), Duration::from_millis(300));
    let drained = drained?.ok()?;
    ensure!(drained["active"] == 1, "{drained}");
    drop(old);
    let drained = stage.proxy.try_drain("db", Version(2, 0), PATIENCE)?.ok()?;
    ensure!(
        drained["active"] == 0 && drained["drained"] == 1,
        "{drained}"
    );
    stage.commit(Version(2, 1), &stage.b)?;
    let mut answer = [0];
    std::io::Read::read_exact(&mut new, &mut answer)?;
    ensure!(answer == *b"B");
    stage.wait_for_kernel()?;
    ensure!(stage.ask()? == b'B');
    Ok(())
}

#[test]
fn a_freeze_resets_idle_clients_and_leaves_the_flows_of_others_alone() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    // Another program sends its own port, and by another address ours, to the same application.
    let (near, inside_a) = (stage.b.near(), stage.a.address());
    nft(&format!(
        "table ip others {{ chain c {{ type nat hook prerouting priority -120; \
         ip daddr {near} tcp dport {PORT} dnat to {inside_a}:8080; \
         tcp dport 6000 dnat to {inside_a}:8080; }}; }}"
    ))?;
    let foreign = stage.connect(6000)?;
    let door = (near, PORT).into();
    let same_port = stage
        .clients
        .run(move || TcpStream::connect_timeout(&door, PATIENCE))??;
    same_port.set_read_timeout(Some(PATIENCE))?;
    let clients = [stage.connect(PORT)?, stage.connect(PORT)?];
    for client in clients.iter().chain([&foreign, &same_port]) {
        ensure!(ask(client)? == b'A');
    }
    let counts = stage.proxy.prepare("db", Version(2, 0))?;
    ensure!(counts["active"] == 2, "{counts}");
    let counts = stage.proxy.try_freeze("db", Version(2, 0))?.ok()?;
    ensure!(counts["active"] == 0 && counts["cut"] == 2, "{counts}");
    for client in &clients {
        let how = end(client)?;
        ensure!(how == Some(ErrorKind::ConnectionReset), "{how:?}");
    }
    for client in [&foreign, &same_port] {
        ensure!(ask(client)? == b'A');
    }
    // The same verb once more finds nothing.
    let counts = stage.proxy.try_freeze("db", Version(2, 0))?.ok()?;
    ensure!(counts["active"] == 0 && counts["cut"] == 2, "{counts}");
    // A way back lifts the fence.
    stage.proxy.try_rollback("db", Version(2, 0))?.ok()?;
    ensure!(stage.ask()? == b'A');
    stage.wait_for_kernel()?;
    ensure!(stage.ask()? == b'A');
    Ok(())
}

#[test]
fn what_is_flushed_by_others_harms_nobody() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    let load = Load::begin(&stage)?;
    for _ in 0..5 {
        load.make_progress()?;
        nft("flush ruleset")?;
    }
    load.make_progress()?;
    load.stop()?;
    stage.wait_for_kernel()?;
    ensure!(leads()?);
    Ok(())
}

#[test]
fn what_others_have_taken_out_comes_back() -> anyhow::Result<()> {
    let stage = Stage::with(Setup::default())?;
    // Tables that have no owner can be changed by anybody.
    nft("add table inet rehome; add table inet rehome_anchor")?;
    let mut stage = stage;
    stage.proxy.rewrite("fast_path: auto")?;
    stage.proxy.signal(Signal::HUP)?;
    stage.fast(Version(1, 0), &stage.a)?;
    for (number, harm) in [
        "flush ruleset",
        "flush chain inet rehome to4",
        "delete element inet rehome keep4 { tcp . 5000 }",
    ]
    .into_iter()
    .enumerate()
    {
        nft(harm)?;
        ensure!(stage.ask()? == b'A', "{harm}");
        wait_until("it is repaired", PATIENCE, || {
            let there = table("rehome")?;
            let rules = table("rehome_anchor")?.contains("ct state");
            Ok(rules && there.contains("dnat") && leads()?)
        })
        .with_context(|| format!("after {harm}, {number}"))?;
        ensure!(stage.ask()? == b'A', "{harm}");
    }
    let repairs = stage
        .proxy
        .metric("rehome_proxy_fast_path_repairs_total", &[])?;
    ensure!(repairs == 2, "{repairs}");
    Ok(())
}

#[test]
fn a_gate_that_comes_back_parked_has_no_element() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    stage.proxy.prepare("db", Version(2, 0))?;
    stage.proxy.kill()?;
    // As if it had died before it could take it out: nobody owns the table now.
    let to = stage.a.address();
    nft(&format!(
        "add element inet rehome keep4 {{ tcp . {PORT} : {to} . 8080 }}"
    ))?;
    ensure!(stage.ask()? == b'A');
    stage.proxy.start_again()?;
    ensure!(!leads()?);
    let mut held = stage.connect(PORT)?;
    held.write_all(b"?")?;
    wait_until(
        "it is held",
        PATIENCE,
        || Ok(stage.proxy.parked(PORT)? == 1),
    )?;
    stage.commit(Version(2, 1), &stage.b)?;
    let mut answer = [0];
    std::io::Read::read_exact(&mut held, &mut answer)?;
    ensure!(answer == *b"B");
    Ok(())
}

#[test]
fn a_crash_leaves_what_flows_and_an_ordinary_end_leads_nobody_anywhere() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    let client = stage.connect(PORT)?;
    ensure!(ask(&client)? == b'A');
    stage.proxy.kill()?;
    ensure!(ask(&client)? == b'A' && stage.ask()? == b'A');
    stage.proxy.start_again()?;
    stage.wait_for_kernel()?;
    ensure!(ask(&client)? == b'A' && stage.ask()? == b'A');
    stage.proxy.terminate()?;
    ensure!(!leads()?);
    // What is left of it may go, too: the anchor keeps translation at work.
    nft("delete table inet rehome")?;
    ensure!(ask(&client)? == b'A', "what flows was cut");
    let refused = stage.connect(PORT).map(drop).unwrap_err();
    ensure!(format!("{refused:#}").contains("refused"), "{refused:#}");
    stage.proxy.start_again()?;
    // What flows is still known for what it is.
    stage.proxy.prepare("db", Version(2, 0))?;
    let counts = stage.proxy.try_freeze("db", Version(2, 0))?.ok()?;
    ensure!(counts["cut"] == 1, "{counts}");
    ensure!(end(&client)? == Some(ErrorKind::ConnectionReset));
    Ok(())
}

#[test]
fn an_upgrade_under_load_leaves_the_kernel_to_the_successor() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    let load = Load::begin(&stage)?;
    load.make_progress()?;
    let file = stage.proxy.directory().join("proxyd.yml");
    let body = json!({
        "executable": program::built("proxyd")?,
        "arguments": ["--config", file],
    });
    let reply = stage
        .proxy
        .send(("POST", "/v1/upgrade"), Some(&body))?
        .ok()?;
    let pid = i32::try_from(reply["pid"].as_i64().context("no pid")?)?;
    let successor = Successor(Pid::from_raw(pid).context("no process")?);
    stage.proxy.wait_for_end()?;
    load.make_progress()?;
    ensure!(leads()?);
    // The successor can change what it has got.
    let counts = wait_for("the successor takes the verb", PATIENCE, || {
        Ok(stage.proxy.prepare("db", Version(1, 1)).ok())
    })?;
    ensure!(counts["active"].as_u64() >= Some(1), "{counts}");
    ensure!(!leads()?);
    stage.proxy.try_rollback("db", Version(1, 1))?.ok()?;
    load.make_progress()?;
    stage.wait_for_kernel()?;
    load.make_progress()?;
    load.stop()?;
    drop(successor);
    Ok(())
}

/// A process that is nobody's child.
struct Successor(Pid);

impl Drop for Successor {
    fn drop(&mut self) {
        // It fails only when it has ended already.
        let _ended = kill_process(self.0, Signal::KILL);
    }
}

#[test]
fn datagrams_follow_their_route_from_one_instance_to_the_next() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    let mut udp = route(PORT, "db", Version(1, 0), &inside(&stage.a));
    udp["key"] = json!(format!("{PORT}/udp"));
    stage.proxy.set(&[udp])?;
    wait_until("the kernel carries it", PATIENCE, leads)?;
    let (door, any) = (stage.door(), (Ipv4Addr::UNSPECIFIED, 0));
    let client = stage.clients.run(move || UdpSocket::bind(any))??;
    client.connect(door)?;
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    // Each question has a number, and an answer to an older one is none to this.
    let number = Cell::new(0_u8);
    let ask = || -> anyhow::Result<Option<u8>> {
        number.set(number.get().wrapping_add(1));
        client.send(&[number.get()])?;
        loop {
            let mut answer = [0; 2];
            match client.recv(&mut answer) {
                Ok(_) if answer[1] == number.get() => return Ok(Some(answer[0])),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    };
    wait_until("A answers", PATIENCE, || Ok(ask()? == Some(b'A')))?;
    let sessions = stage.proxy.metric("rehome_proxy_udp_sessions", &[])?;
    ensure!(sessions == 0, "user space has {sessions} sessions");
    stage.proxy.prepare("db", Version(2, 0))?;
    // The same socket, whose flow the kernel knew: user space has it now.
    ensure!(ask()?.is_none(), "the old instance answers");
    let verb = json!({
        "application": "db",
        "version": {"epoch": 2, "generation": 1},
        "targets": [{"key": format!("{PORT}/udp"), "target": inside(&stage.b)}],
    });
    stage
        .proxy
        .send(("POST", "/v1/gates/commit"), Some(&verb))?
        .ok()?;
    wait_until("B answers", PATIENCE, || Ok(ask()? == Some(b'B')))?;
    Ok(())
}

#[test]
fn the_application_sees_its_client_where_the_way_back_is_known() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    let client = stage.connect(PORT)?;
    ensure!(seen_by_application(&client)? == client_address(&stage, &client)?);
    let route = stage.proxy.route(PORT)?;
    ensure!(route["fast_path"]["client_address"] == "kept", "{route}");
    // A client beside the instance would be answered past the proxy: it loses its address.
    let door = stage.door();
    let beside = stage
        .a
        .run(move || TcpStream::connect_timeout(&door, PATIENCE))??;
    beside.set_read_timeout(Some(PATIENCE))?;
    let near = stage.a.near().to_string();
    ensure!(seen_by_application(&beside)?.starts_with(&near));
    // Where a backend of the file answers, nobody knows.
    let to = stage.a.address();
    stage.proxy.rewrite(&format!(
        "fast_path: auto\nroutes: [{{external: 5001, backend: \"{to}:8080\"}}]"
    ))?;
    stage.proxy.signal(Signal::HUP)?;
    wait_until("the kernel carries it", PATIENCE, || {
        let asked = stage.connect(5001).and_then(|client| ask(&client));
        let route = stage.proxy.route(5001);
        Ok(asked.is_ok() && route.is_ok_and(|r| r["fast_path"]["client_address"] == "replaced"))
    })?;
    let client = stage.connect(5001)?;
    ensure!(seen_by_application(&client)?.starts_with(&near));
    Ok(())
}

fn client_address(stage: &Stage, client: &TcpStream) -> anyhow::Result<String> {
    let address = client.local_addr()?;
    ensure!(address.ip() == stage.clients.address());
    Ok(address.to_string())
}

#[test]
fn without_the_privilege_user_space_carries_everything_and_says_so() -> anyhow::Result<()> {
    let stage = Stage::with(Setup {
        user: Some(65_534),
        ..Setup::with("fast_path: auto")
    })?;
    stage.open(Version(1, 0), &stage.a)?;
    ensure!(stage.ask()? == b'A');
    stage.proxy.prepare("db", Version(1, 1))?;
    stage.proxy.try_rollback("db", Version(1, 1))?.ok()?;
    ensure!(stage.ask()? == b'A');
    let route = stage.proxy.route(PORT)?;
    ensure!(route["fast_path"]["carrier"] == "user_space", "{route}");
    let missing = stage
        .proxy
        .metric("rehome_proxy_fast_path", &["unavailable"])?;
    ensure!(missing == 1);
    let log = stage.proxy.log()?;
    ensure!(log.matches("no fast path").count() == 1, "{log}");
    Ok(())
}

#[test]
fn whoever_does_not_ask_for_it_has_nothing_in_the_kernel() -> anyhow::Result<()> {
    let stage = Stage::with(Setup::default())?;
    stage.open(Version(1, 0), &stage.a)?;
    ensure!(stage.ask()? == b'A');
    let route = stage.proxy.route(PORT)?;
    ensure!(route["fast_path"].is_null(), "{route}");
    ensure!(table("rehome")?.is_empty() && table("rehome_anchor")?.is_empty());
    Ok(())
}

#[test]
fn rules_of_others_that_let_nothing_pass_make_it_slower_and_nothing_else() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    nft("table ip others { chain c { type filter hook forward priority 0; policy drop; }; }")?;
    // Its first packets get nowhere; those that come again are taken by user space.
    ensure!(stage.ask()? == b'A');
    let route = stage.proxy.route(PORT)?;
    ensure!(route["fast_path"]["carrier"] == "user_space", "{route}");
    let given_up = stage
        .proxy
        .metric("rehome_proxy_fast_path_given_up_total", &[])?;
    ensure!(given_up == 1, "{given_up}");
    ensure!(stage.ask()? == b'A');
    Ok(())
}

#[test]
fn an_application_that_has_ended_is_waited_for_as_in_user_space() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    let door = (Ipv4Addr::UNSPECIFIED, 8081);
    let listener = stage.a.run(move || TcpListener::bind(door))??;
    let target = local((stage.a.address(), 8081).into());
    stage
        .proxy
        .set(&[route(PORT, "db", Version(1, 0), &target)])?;
    drop((stage.connect(PORT)?, accept(&listener)?));
    stage.wait_for_kernel()?;
    drop(listener);
    // Nobody listens, and the client is not told so.
    let at = stage.door();
    let client = stage
        .clients
        .run(move || thread::spawn(move || TcpStream::connect_timeout(&at, PATIENCE)))?;
    wait_until(
        "it is held",
        PATIENCE,
        || Ok(stage.proxy.parked(PORT)? == 1),
    )?;
    let listener = stage.a.run(move || TcpListener::bind(door))??;
    let client = client
        .join()
        .map_err(|_| anyhow::anyhow!("it panicked"))??;
    let mut inside = accept(&listener)?;
    inside.write_all(b"!")?;
    let mut answer = [0];
    std::io::Read::read_exact(&mut &client, &mut answer)?;
    ensure!(answer == *b"!");
    Ok(())
}

#[test]
fn who_cannot_be_nudged_is_reset_when_it_speaks() -> anyhow::Result<()> {
    let weaker = ["setpriv", "--bounding-set", "-net_raw"];
    let stage = Stage::with(Setup::with("fast_path: auto").through(&weaker))?;
    stage.fast(Version(1, 0), &stage.a)?;
    let mut client = stage.connect(PORT)?;
    ensure!(ask(&client)? == b'A');
    stage.proxy.prepare("db", Version(2, 0))?;
    let counts = stage.proxy.try_freeze("db", Version(2, 0))?.ok()?;
    ensure!(counts["active"] == 0 && counts["cut"] == 1, "{counts}");
    // Nothing has told it.
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    let how = end(&client)?;
    ensure!(how == Some(ErrorKind::WouldBlock), "{how:?}");
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b"?")?;
    let how = end(&client)?;
    ensure!(how == Some(ErrorKind::ConnectionReset), "{how:?}");
    Ok(())
}

#[test]
fn ipv6_is_carried_as_ipv4_is() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    let inside = (stage.a.address6(), 8082);
    let listener = stage.a.run(move || TcpListener::bind(inside))??;
    let target = local(inside.into());
    stage
        .proxy
        .set(&[route(PORT, "db", Version(1, 0), &target)])?;
    let door = (stage.clients.near6(), PORT);
    let connect = || {
        let connect = move || TcpStream::connect_timeout(&door.into(), PATIENCE);
        stage.clients.run(connect)?.map_err(anyhow::Error::from)
    };
    drop((connect()?, accept(&listener)?));
    stage.wait_for_kernel()?;
    let client = connect()?;
    client.set_read_timeout(Some(PATIENCE))?;
    // User space would have connected from its own address.
    let carried = accept(&listener)?;
    ensure!(carried.peer_addr()? == client.local_addr()?);
    stage.proxy.prepare("db", Version(2, 0))?;
    let counts = stage.proxy.try_freeze("db", Version(2, 0))?.ok()?;
    ensure!(counts["cut"] == 1 && counts["active"] == 0, "{counts}");
    ensure!(end(&client)? == Some(ErrorKind::ConnectionReset));
    Ok(())
}
