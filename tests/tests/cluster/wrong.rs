//! What is said when something is wrong, and that nothing has changed then.

use std::time::Duration;

use anyhow::ensure;
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::lab::{Lab, Runtime, with_lab};
use rehome_tests::page;
use rehome_tests::wait::{wait_for, wait_until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(1);

/// What must not change: the generation, how many migrations there were, the run of the page.
fn state(lab: &Lab) -> anyhow::Result<(Value, usize, String)> {
    let run = format!("{:?}", lab.application("page")?.run());
    let generation = lab.status()?["generation"].clone();
    Ok((generation, lab.migrations()?.len(), run))
}

fn with_page(
    runtime: Runtime,
    test: fn(&Lab, &Deployment) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    with_lab(runtime, &[], |lab| {
        let deployment = Deployment::new().with("page", 1, &page::body(7001, "here"));
        lab.deploy(&deployment)?.ok()?;
        lab.wait_running("page", 1)?;
        let before = state(lab)?;
        test(lab, &deployment)?;
        let after = state(lab)?;
        ensure!(before == after, "{before:?} became {after:?}");
        let page = page::fetch(lab.host(2)?.door(7001)?)?;
        ensure!(page.contains("SAYS=here\n"), "{page}");
        Ok(())
    })
}

#[test]
fn wrong_files_and_unknown_names_are_refused_and_change_nothing() -> anyhow::Result<()> {
    with_page(Runtime::Process, |lab, deployment| {
        let host = lab.host(1)?;
        let files = tempfile::tempdir()?;
        let path = |name: &str| files.path().join(name).display().to_string();
        let (placed, described) = (path("deployment.yml"), path("application.yml"));
        let here = host.address();
        std::fs::write(
            &placed,
            format!("version: 1\nnodes:\n  {here}: [page, ghost]\n"),
        )?;
        std::fs::write(
            &described,
            "version: 1\napplications:\n  page:\n    image: x\n    ports: [{internal: 0, external: 70000}]\n    colour: blue\n",
        )?;
        // Every problem of both files at once, with its file, line and key.
        let told = host
            .rehome(&["deploy", &placed, &described])?
            .with_status(2)?;
        told.clone().saying("application.yml:5")?;
        told.clone().saying("70000")?;
        told.clone().saying("application.yml:6")?.saying("colour")?;
        told.saying("deployment.yml:3")?.saying("ghost")?;
        host.rehome(&["deploy", &placed, &path("absent.yml")])?
            .with_status(2)?
            .saying("absent.yml")?;

        let to = lab.host(2)?.address();
        host.rehome(&["move", "ghost", "--to", to])?
            .with_status(2)?
            .saying("page")?;
        host.rehome(&["move", "page", "--to", "10.1.2.3"])?
            .with_status(2)?
            .saying(to)?;
        host.rehome(&["move", "page"])?
            .with_status(2)?
            .saying("--to")?;
        host.rehome(&["abort", "01arz3ndektsv4rrffq69g5fav"])?
            .with_status(2)?;

        // Only said, not done.
        let other = deployment.with("page", 2, &page::body(7001, "there"));
        let mut arguments = lab.deploy_arguments(&other)?;
        arguments.push("--dry-run".to_owned());
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let plan = host.rehome(&words)?.ok()?.json()?;
        ensure!(plan["changes"][0]["kind"]["change"] == "move", "{plan}");
        Ok(())
    })
}

#[test]
fn a_port_that_is_taken_on_any_host_is_named_before_anything_changes() -> anyhow::Result<()> {
    with_page(Runtime::Process, |lab, deployment| {
        let squatter = lab.host(3)?.begin(&["busybox", "nc", "-l", "-p", "7009"])?;
        wait_for("the port is taken", PATIENCE, || {
            Ok(lab
                .host(3)?
                .shell("ss -Hltn sport = :7009")?
                .contains(":7009")
                .then_some(()))
        })?;
        let wanted = changed(
            &page::body(7001, "here"),
            &json!({"ports": [{"internal": 8080, "external": 7001}, {"internal": 8081, "external": 7009}]}),
        );
        let told = lab
            .deploy(&deployment.with("page", 2, &wanted))?
            .with_status(1)?;
        told.saying("7009")?.saying(lab.host(3)?.address())?;
        drop(squatter);
        Ok(())
    })
}

#[test]
fn a_host_that_does_not_answer_is_named_and_nothing_changes() -> anyhow::Result<()> {
    with_page(Runtime::Process, |lab, deployment| {
        let gone = lab.host(3)?;
        gone.crash()?;
        let told = lab.deploy(&deployment.with("page", 2, &page::body(7001, "there")))?;
        told.with_status(1)?.saying(gone.address())?;
        let to = lab.host(2)?.address();
        let told = lab.rehome(&["move", "page", "--to", to])?;
        told.with_status(1)?.saying(gone.address())?;
        wait_until("it alone does not answer", PATIENCE, || {
            let status = lab.status()?;
            let hosts = status["hosts"].as_array().into_iter().flatten();
            let silent: Vec<_> = hosts.filter(|host| host["reachable"] == false).collect();
            Ok(silent.len() == 1 && silent[0]["address"] == gone.address())
        })?;
        gone.start()?;
        Ok(())
    })
}

#[test]
fn an_image_that_the_destination_lacks_is_named_before_anything_moves() -> anyhow::Result<()> {
    with_page(Runtime::Docker, |lab, _| {
        lab.host(2)?
            .shell(&format!("docker image rm {}", page::IMAGE))?;
        // No registry is asked: its name leads to this host itself, which refuses at once.
        lab.host(2)?.shell(
            "echo 127.0.0.1 localhost registry-1.docker.io >/run/hosts; \
             mount --bind /run/hosts /etc/hosts",
        )?;
        let to = lab.host(2)?.address();
        let told = lab.rehome(&["move", "page", "--to", to])?.with_status(1)?;
        told.saying(page::IMAGE)?.saying(to)?;
        Ok(())
    })
}
