//! What runs where, and what a change touches.

use anyhow::ensure;
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::lab::{Lab, Runtime, with_lab};
use rehome_tests::page;
use rehome_tests::wait::wait_until;
use serde_json::{Value, json};
use std::time::Duration;

/// Linked to an application behind the external port 7002 as `peer`.
fn linked(external: u16, says: &str) -> Value {
    let link = json!([{"local_port": 80, "remote_port": 7002, "alias": "peer"}]);
    changed(&page::body(external, says), &json!({"links": link}))
}

fn answers(lab: &Lab, port: u16, words: &str) -> anyhow::Result<()> {
    for door in lab.doors(port)? {
        let page = page::fetch(door)?;
        ensure!(page.contains(words), "{door} answers {page}");
    }
    Ok(())
}

fn three_applications(runtime: Runtime) -> anyhow::Result<()> {
    with_lab(runtime, &[], |lab| {
        let deployment = Deployment::new()
            .with("one", 1, &page::body(7001, "I am one"))
            .with("two", 2, &page::body(7002, "I am two"))
            .with("three", 3, &linked(7003, "I am three"));
        lab.deploy(&deployment)?.ok()?;
        for (name, host) in [("one", 1), ("two", 2), ("three", 3)] {
            lab.wait_running(name, host)?;
            answers(
                lab,
                7000 + u16::try_from(host)?,
                &format!("SAYS=I am {name}\n"),
            )?;
        }
        for host in lab.hosts() {
            let processes = host.processes()?;
            let server = |line: &&str| line.starts_with("busybox httpd");
            let servers = processes.lines().filter(server).count();
            ensure!(
                servers == 1,
                "{} runs {servers} of them:\n{processes}",
                host.name()
            );
        }
        // A link leads through the linking application's own host.
        let own = lab.host(3)?.address();
        let page = page::fetch(lab.host(1)?.door(7003)?)?;
        for variable in [
            format!("PEER_PORT_80_TCP=tcp://{own}:7002\n"),
            "PEER_PORT_80_TCP_PROTO=tcp\n".to_owned(),
            format!("PEER_PORT_80_TCP_ADDR={own}\n"),
            "PEER_PORT_80_TCP_PORT=7002\n".to_owned(),
        ] {
            ensure!(page.contains(&variable), "no {variable} in {page}");
        }
        Ok(())
    })
}

#[test]
fn three_processes_run_where_they_should_and_answer_on_every_host() -> anyhow::Result<()> {
    three_applications(Runtime::Process)
}

#[test]
fn three_containers_run_where_they_should_and_answer_on_every_host() -> anyhow::Result<()> {
    three_applications(Runtime::Docker)
}

/// The runs of `names`, as they are now.
fn runs(lab: &Lab, names: &[&str]) -> anyhow::Result<Vec<(Option<String>, Option<String>)>> {
    let run = |name: &&str| {
        let seen = lab.application(name)?;
        ensure!(seen.state == "running", "{seen:?}");
        Ok((seen.instance, seen.started_at))
    };
    names.iter().map(run).collect()
}

#[test]
fn the_same_files_again_do_nothing_and_a_change_restarts_what_it_is_about() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let base = Deployment::new()
            .with("changing", 1, &linked(7001, "first"))
            .with("beside", 1, &page::body(7002, "beside"))
            .with("away", 2, &linked(7003, "away"));
        lab.deploy(&base)?.ok()?;
        let names = ["changing", "beside", "away"];
        let mut before = runs(lab, &names)?;

        let again = lab.deploy(&base)?.ok()?.json()?;
        ensure!(
            again["changes"] == json!([]) && again["generation"] == 1,
            "{again}"
        );
        ensure!(
            runs(lab, &names)? == before,
            "the second deployment did something"
        );

        let link = json!([{"local_port": 80, "remote_port": 7003, "alias": "other"}]);
        for change in [
            json!({"environment": {"SAYS": "second"}}),
            json!({"mem_limit": 100_000_000}),
            json!({"links": link}),
        ] {
            let body = changed(&linked(7001, "first"), &change);
            let told = lab.deploy(&base.with("changing", 1, &body))?.ok()?.json()?;
            let kinds = json!([{
                "application": "changing",
                "kind": {"change": "restart", "host": lab.host(1)?.address()},
            }]);
            ensure!(told["changes"] == kinds, "{change}: {told}");
            let after = runs(lab, &names)?;
            ensure!(after[0] != before[0], "{change} restarted nothing");
            ensure!(
                after[1..] == before[1..],
                "{change} restarted others: {after:?}"
            );
            before = after;
        }
        answers(lab, 7001, "OTHER_PORT_80_TCP_PORT=7003\n")
    })
}

#[test]
fn a_new_port_opens_and_an_old_one_closes_without_a_restart() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let base = Deployment::new().with("page", 1, &page::body(7001, "here"));
        lab.deploy(&base)?.ok()?;
        let before = runs(lab, &["page"])?;

        lab.deploy(&base.with("page", 1, &page::body(7005, "here")))?
            .ok()?;

        answers(lab, 7005, "SAYS=here\n")?;
        for door in lab.doors(7001)? {
            wait_until(
                &format!("{door} is closed"),
                Duration::from_secs(30),
                || Ok(std::net::TcpStream::connect(door).is_err()),
            )?;
        }
        ensure!(runs(lab, &["page"])? == before, "it was restarted");
        Ok(())
    })
}
