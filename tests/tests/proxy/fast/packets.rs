//! Packets that come to the fast path and are no part of what it carries.

use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, ensure};
use rehome_tests::network::{Far, counter};
use rehome_tests::program;
use rehome_tests::proxy::{PATIENCE, Version, route};
use rehome_tests::wait::wait_until;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use serde_json::json;

use super::stage::{PORT, Stage, ask, inside, nft, table};

const ACK: u8 = 0x10;

/// A segment of TCP with nothing in it, at a place where no sender is.
fn segment(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0x50, ACK]);
    bytes.extend([0xff, 0xff, 0, 0, 0, 0]);
    let mut summed: Vec<u8> = [from.ip().octets(), to.ip().octets()].concat();
    summed.extend([0, 6, 0, 20]);
    summed.extend(&bytes);
    let sum: u32 = summed
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0);
    bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// Sends such a one from an address of a host.
fn send(by: &Far, from: SocketAddrV4, to: SocketAddrV4) -> anyhow::Result<()> {
    by.run(move || -> anyhow::Result<()> {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::TCP))?;
        let to_host = SocketAddrV4::new(*to.ip(), 0);
        sendto(&raw, &segment(from, to), SendFlags::empty(), &to_host)?;
        Ok(())
    })?
}

fn v4(address: SocketAddr) -> anyhow::Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => anyhow::bail!("{address} is none of IPv4"),
    }
}

/// Resets that a host has sent because it knew of no such connection.
fn resets(of: Option<&Far>) -> anyhow::Result<u64> {
    match of {
        Some(far) => far.run(|| counter("Tcp:", "OutRsts"))?,
        None => counter("Tcp:", "OutRsts"),
    }
}

#[test]
fn a_segment_of_no_connection_is_reset_here_and_makes_no_route_slower() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    let before = resets(None)?;
    let stranger = SocketAddrV4::new(stage.clients.address(), 999);
    send(&stage.clients, stranger, v4(stage.door())?)?;
    wait_until("it is reset", PATIENCE, || Ok(resets(None)? == before + 1))?;
    // A look at what was noted has been when it has led something else.
    let mut udp = route(PORT, "dns", Version(1, 0), &inside(&stage.a));
    udp["key"] = json!(format!("{PORT}/udp"));
    let tcp = route(PORT, "db", Version(1, 0), &inside(&stage.a));
    stage.proxy.set(&[tcp, udp])?;
    wait_until("the kernel carries it", PATIENCE, || {
        Ok(table("rehome")?.contains("udp . 5000 :"))
    })?;
    let given_up = stage
        .proxy
        .metric("rehome_proxy_fast_path_given_up_total", &[])?;
    let route = stage.proxy.route(PORT)?;
    ensure!(
        given_up == 0 && route["fast_path"]["carrier"] == "kernel",
        "{route}"
    );
    Ok(())
}

#[test]
fn a_segment_outside_of_every_window_ends_nobodys_connection() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    let client = stage.connect(PORT)?;
    ensure!(ask(&client)? == b'A');
    let outside = v4(client.local_addr()?)?;
    let target = SocketAddrV4::new(stage.a.address(), 8080);
    let before = (resets(None)?, resets(Some(&stage.clients))?);
    send(&stage.clients, outside, v4(stage.door())?)?;
    send(&stage.a, target, outside)?;
    // What is sent behind them has come when the answer is there.
    for _ in 0..3 {
        ensure!(ask(&client)? == b'A');
    }
    let after = (resets(None)?, resets(Some(&stage.clients))?);
    ensure!(before == after, "{before:?}, then {after:?}");
    Ok(())
}

#[test]
fn rules_of_others_that_refuse_refuse_no_client() -> anyhow::Result<()> {
    for how in ["reject", "reject with tcp reset"] {
        let stage = Stage::new()?;
        stage.fast(Version(1, 0), &stage.a)?;
        nft(&format!(
            "table ip others {{ chain c {{ type filter hook forward priority 0; \
             tcp dport 8080 ct state new {how}; }}; }}"
        ))?;
        // Its first packet is refused; that which comes again is taken by user space.
        ensure!(stage.ask()? == b'A', "{how}");
        let route = stage.proxy.route(PORT)?;
        ensure!(
            route["fast_path"]["carrier"] == "user_space",
            "{how}: {route}"
        );
    }
    Ok(())
}

#[test]
fn who_waits_for_an_answer_when_a_gate_is_parked_gets_it_from_the_next_target() -> anyhow::Result<()>
{
    let stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    // Its host takes nobody in.
    let deaf = "table ip others { chain c { type filter hook input priority 0; \
                tcp dport 8080 tcp flags & (syn | ack) == syn drop; }; }";
    stage.a.run(move || nft(deaf))??;
    let door = stage.door();
    let client = stage
        .clients
        .run(move || thread::spawn(move || TcpStream::connect_timeout(&door, PATIENCE)))?;
    wait_until("it has asked", PATIENCE, || {
        let mut list = Command::new("conntrack");
        let list = list.args(["-L", "-p", "tcp", "--state", "SYN_SENT"]);
        Ok(program::run(list, PATIENCE)?.stdout.contains("dport=5000"))
    })?;
    stage.proxy.prepare("db", Version(2, 0))?;
    stage.a.run(|| nft("delete table ip others"))??;
    wait_until(
        "it is held",
        PATIENCE,
        || Ok(stage.proxy.parked(PORT)? == 1),
    )?;
    stage.commit(Version(2, 1), &stage.b)?;
    let client = client.join().ok().context("it panicked")??;
    client.set_read_timeout(Some(PATIENCE))?;
    ensure!(ask(&client)? == b'B');
    Ok(())
}
