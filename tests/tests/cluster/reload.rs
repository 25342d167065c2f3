//! SIGHUP and metrics.

use std::time::Duration;

use anyhow::ensure;
use rehome_tests::deployment::Deployment;
use rehome_tests::lab::{Host, Runtime, with_lab};
use rehome_tests::wait::wait_until;
use rehome_tests::{page, promtool};

const PATIENCE: Duration = Duration::from_mins(1);

/// How many reloads a daemon counted by their result.
fn reloads(host: &Host, daemon: &str, result: &str) -> anyhow::Result<f64> {
    host.metric(
        daemon,
        &format!("rehome_config_reloads_total{{result=\"{result}\"}}"),
    )
}

/// Sends SIGHUP and waits until it is counted with `result`.
fn reload(host: &Host, daemon: &str, result: &str) -> anyhow::Result<()> {
    let before = reloads(host, daemon, result)?;
    host.shell(&format!("kill -HUP {}", host.daemon(daemon)?))?;
    wait_until(&format!("{daemon} has {result} a reload"), PATIENCE, || {
        Ok(reloads(host, daemon, result)? > before)
    })
}

#[test]
fn a_wrong_file_changes_nothing_and_is_counted_and_a_right_one_takes_effect() -> anyhow::Result<()>
{
    with_lab(Runtime::Process, &[], |lab| {
        lab.deploy(&Deployment::new().with("page", 1, &page::body(7001, "here")))?
            .ok()?;
        let before = lab.application("page")?;
        let host = lab.host(1)?;
        for daemon in ["migrated", "proxyd"] {
            let pid = host.daemon(daemon)?;
            let file = format!("/etc/rehome/{daemon}.yml");
            host.shell(&format!(
                "cp {file} {file}.right; echo 'colour: blue' >>{file}"
            ))?;
            reload(host, daemon, "rejected")?;
            let page = page::fetch(host.door(7001)?)?;
            ensure!(page.contains("SAYS=here\n"), "{page}");
            host.shell(&format!("mv {file}.right {file}"))?;
            reload(host, daemon, "applied")?;
            ensure!(host.daemon(daemon)? == pid, "{daemon} was restarted");
        }
        let after = lab.wait_running("page", 1)?;
        ensure!(after.run() == before.run(), "it was restarted: {after:?}");
        Ok(())
    })
}

#[test]
fn a_host_follows_the_deployment_files_that_its_configuration_names() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let files = tempfile::tempdir()?;
        let write = |says: &str| {
            let deployment = Deployment::new().with("page", 2, &page::body(7001, says));
            deployment.write(files.path(), &lab.addresses())
        };
        let (placed, described) = write("first")?;
        let host = lab.host(1)?;
        host.shell(&format!(
            "printf 'deployment: {}\\napplication: {}\\n' >>/etc/rehome/migrated.yml",
            placed.display(),
            described.display()
        ))?;
        reload(host, "migrated", "applied")?;
        lab.wait_running("page", 2)?;
        let says = |words: &str| {
            wait_until(&format!("the page says {words}"), PATIENCE, || {
                let page = page::fetch(host.door(7001)?)?;
                Ok(page.contains(&format!("SAYS={words}\n")))
            })
        };
        says("first")?;
        let first = lab.application("page")?;

        std::fs::write(&described, "version: 1\napplications: {page: {}}\n")?;
        reload(host, "migrated", "rejected")?;
        let kept = lab.application("page")?;
        ensure!(kept.run() == first.run(), "{kept:?}");
        says("first")?;

        write("second")?;
        reload(host, "migrated", "applied")?;
        says("second")
    })
}

#[test]
fn promtool_has_nothing_against_the_metrics_of_either_daemon() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        // After a move every metric has values.
        lab.deploy(&Deployment::new().with("page", 1, &page::body(7001, "here")))?
            .ok()?;
        page::fetch(lab.host(2)?.door(7001)?)?;
        lab.move_to("page", 2)?.ok()?;
        for host in lab.hosts() {
            for daemon in ["migrated", "proxyd"] {
                let file = lab.path(&format!("{}-{daemon}.prom", host.name()));
                std::fs::write(&file, host.metrics(daemon)?)?;
                let line = format!(
                    "{} check metrics <{}",
                    promtool()?.display(),
                    file.display()
                );
                host.exec(&["sh", "-c", &line])?.ok()?;
            }
        }
        Ok(())
    })
}
