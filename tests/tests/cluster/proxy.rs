//! Traffic: the proxies restart, and applications without volumes move.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use rehome_tests::deployment::Deployment;
use rehome_tests::lab::{Host, Runtime, with_lab};
use rehome_tests::page;
use rehome_tests::wait::wait_until;

const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_proxy_that_was_killed_serves_as_before_even_without_migrated() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let deployment = Deployment::new().with("page", 1, &page::body(7001, "still here"));
        lab.deploy(&deployment)?.ok()?;
        let before = lab.application("page")?;
        // The owner's proxy, and one that leads there.
        for number in [1, 2] {
            let host = lab.host(number)?;
            host.hold("migrated")?;
            host.kill_daemon("migrated")?;
            let old = host.daemon("proxyd")?;
            host.kill_daemon("proxyd")?;
            host.wait_daemon("proxyd", old)?;
            ensure!(
                host.daemon("migrated").is_err(),
                "migrated was to stay down"
            );
        }
        for door in lab.doors(7001)? {
            ensure!(page::fetch(door)?.contains("SAYS=still here\n"), "{door}");
        }
        for number in [1, 2] {
            lab.host(number)?.let_go("migrated")?;
            lab.host(number)?.wait_daemon("migrated", 0)?;
        }
        let after = lab.wait_running("page", 1)?;
        ensure!(after.run() == before.run(), "it was restarted: {after:?}");
        for door in lab.doors(7001)? {
            ensure!(page::fetch(door)?.contains("SAYS=still here\n"), "{door}");
        }
        Ok(())
    })
}

/// Fetches the page again and again by several threads while something happens, and insists that
/// every answer is whole.
fn while_fetching(
    doors: &[SocketAddr],
    happens: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let visit = |first: usize| -> anyhow::Result<()> {
        for door in doors.iter().cycle().skip(first) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let page = page::fetch(*door);
            let page = page.with_context(|| format!("{door}"))?;
            ensure!(page.contains("SAYS=always\n"), "{door} answers {page}");
            served.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let visitors: Vec<_> = (0..4)
            .map(|first| scope.spawn(move || visit(first)))
            .collect();
        let more = || {
            let goal = served.load(Ordering::Relaxed) + 100;
            wait_until("a hundred more pages", PATIENCE, || {
                ensure!(
                    !visitors.iter().any(thread::ScopedJoinHandle::is_finished),
                    "a visitor failed"
                );
                Ok(served.load(Ordering::Relaxed) >= goal)
            })
        };
        let result = more().and_then(|()| happens()).and_then(|()| more());
        stop.store(true, Ordering::Relaxed);
        for visitor in visitors {
            visitor
                .join()
                .map_err(|_| anyhow!("a visitor panicked"))??;
        }
        result
    })
}

fn a_stateless_application_moves(runtime: Runtime) -> anyhow::Result<()> {
    with_lab(runtime, &[], |lab| {
        let deployment = Deployment::new().with("page", 1, &page::body(7001, "always"));
        lab.deploy(&deployment)?.ok()?;
        let doors = lab.doors(7001)?;
        while_fetching(&doors, || {
            lab.move_to("page", 2)?.ok()?;
            lab.wait_running("page", 2)?;
            lab.move_to("page", 3)?.ok()?;
            lab.wait_running("page", 3)?;
            Ok(())
        })?;
        for number in [1, 2] {
            let processes = lab.host(number)?.processes()?;
            ensure!(
                !processes.contains("httpd -f"),
                "h{number} still runs it:\n{processes}"
            );
        }
        let migration = lab.last_migration()?;
        ensure!(
            migration.state() == "done" && migration.0["window_seconds"].is_null(),
            "{migration:?}"
        );
        Ok(())
    })
}

/// Upgrades the proxy of a host again and again; says how often.
fn upgrade_until(host: &Host, over: &AtomicBool) -> anyhow::Result<usize> {
    let command = ["proxyd", "--upgrade", "--config", "/etc/rehome/proxyd.yml"];
    let mut times = 0;
    while !over.load(Ordering::Relaxed) {
        let before = host.daemon("proxyd")?;
        host.exec(&command)?.ok()?.saying("handed over")?;
        host.wait_daemon("proxyd", before)?;
        times += 1;
    }
    Ok(times)
}

#[test]
fn every_proxy_is_upgraded_again_and_again_while_an_application_moves_and_no_request_fails()
-> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let deployment = Deployment::new().with("page", 1, &page::body(7001, "always"));
        lab.deploy(&deployment)?.ok()?;
        let over = AtomicBool::new(false);
        while_fetching(&lab.doors(7001)?, || {
            thread::scope(|scope| {
                let upgrades: Vec<_> = lab
                    .hosts()
                    .iter()
                    .map(|host| scope.spawn(|| upgrade_until(host, &over)))
                    .collect();
                let moved = [2, 3, 1, 2].into_iter().try_for_each(|to| {
                    lab.move_to("page", to)?.ok()?;
                    lab.wait_running("page", to).map(drop)
                });
                over.store(true, Ordering::Relaxed);
                for upgraded in upgrades {
                    let upgraded = upgraded.join().map_err(|_| anyhow!("it panicked"))?;
                    ensure!(upgraded? > 0, "a proxy was not upgraded");
                }
                moved
            })
        })
    })
}

#[test]
fn every_proxy_is_restarted_again_and_again_and_no_request_fails() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let deployment = Deployment::new().with("page", 1, &page::body(7001, "always"));
        lab.deploy(&deployment)?.ok()?;
        while_fetching(&lab.doors(7001)?, || {
            [1, 2, 3, 1, 2, 1].into_iter().try_for_each(|number| {
                let host = lab.host(number)?;
                let old = host.daemon("proxyd")?;
                host.shell(&format!("kill -TERM {old}"))?;
                host.wait_daemon("proxyd", old)
            })
        })
    })
}

/// The owner's, and one that leads there, by a restart and by a crash. Who comes meanwhile waits.
#[test]
fn nobody_is_refused_while_a_proxy_starts_again() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let deployment = Deployment::new().with("page", 1, &page::body(7001, "always"));
        lab.deploy(&deployment)?.ok()?;
        let doors = lab.doors(7001)?;
        let (stop, comes) = (AtomicBool::new(false), AtomicUsize::new(0));
        let come = || -> anyhow::Result<()> {
            for door in doors.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                TcpStream::connect(door).with_context(|| format!("{door}"))?;
                comes.fetch_add(1, Ordering::Relaxed);
                thread::park_timeout(Duration::from_millis(1));
            }
            Ok(())
        };
        thread::scope(|scope| {
            let client = scope.spawn(come);
            let mut turns = [(1, "TERM"), (2, "KILL"), (1, "KILL"), (2, "TERM")].iter();
            let result = turns.try_for_each(|(number, signal)| {
                let host = lab.host(*number)?;
                let old = host.daemon("proxyd")?;
                host.shell(&format!("kill -{signal} {old}"))?;
                host.wait_daemon("proxyd", old)
            });
            stop.store(true, Ordering::Relaxed);
            client.join().map_err(|_| anyhow!("a client panicked"))??;
            result
        })?;
        ensure!(comes.load(Ordering::Relaxed) > 100, "{comes:?}");
        for door in doors {
            ensure!(page::fetch(door)?.contains("SAYS=always\n"), "{door}");
        }
        Ok(())
    })
}

#[test]
fn a_process_without_a_volume_moves_and_no_request_fails() -> anyhow::Result<()> {
    a_stateless_application_moves(Runtime::Process)
}

#[test]
fn a_container_without_a_volume_moves_and_no_request_fails() -> anyhow::Result<()> {
    a_stateless_application_moves(Runtime::Docker)
}
