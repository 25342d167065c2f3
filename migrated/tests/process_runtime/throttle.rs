//! What an application uses, and holding it to less.

use std::time::{Duration, Instant};

use migrated::runtime::process::ProcessRuntime;
use migrated::runtime::{Cpus, Runtime, Usage};
use rehome_shared::ids::AppName;
use rehome_shared::units::Bytes;

use crate::host::{GRACE, Host, shell, until};

type Test = anyhow::Result<()>;

/// Far below what a busy loop gets on the busiest machine.
const LITTLE: Cpus = Cpus(0.02);

/// What a busy loop of one process and its children is held to, or `None` for as much as it gets.
fn busy(third: u8) -> anyhow::Result<Option<(Host, AppName)>> {
    let Some(host) = Host::new(third)? else {
        return Ok(None);
    };
    let spec = shell("busy", "while :; do :; done")?;
    host.launch(&spec)?;
    is_free(&host, &spec.application)?;
    Ok(Some((host, spec.application)))
}

/// Uses of the processor, per second, over a stretch of time.
fn used(host: &Host, name: &AppName, stretch: Duration) -> anyhow::Result<f64> {
    let began = Instant::now();
    let before = host.run(host.runtime.usage(name))?;
    until("the end of the stretch", || {
        Ok((began.elapsed() >= stretch).then_some(()))
    })?;
    let after = host.run(host.runtime.usage(name))?;
    let used = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    Ok(used / began.elapsed().as_secs_f64())
}

fn is_free(host: &Host, name: &AppName) -> anyhow::Result<()> {
    until("its freedom", || {
        let used = used(host, name, Duration::from_millis(300))?;
        Ok((used > 4.0 * LITTLE.0).then_some(()))
    })
}

/// However busy the machine is, it never gets more; a tick of the clock may be counted at each
/// end.
fn is_held(host: &Host, name: &AppName) -> anyhow::Result<()> {
    let used = used(host, name, Duration::from_secs(2))?;
    anyhow::ensure!(used < 2.0 * LITTLE.0, "it used {used} of a processor");
    Ok(())
}

#[test]
fn what_an_application_uses_is_counted_with_its_children() -> Test {
    let Some(host) = Host::new(17)? else {
        return Ok(());
    };
    let file = host.directory.path().join("written");
    let script = format!(
        "dd if=/dev/zero of={} bs=1M count=8 2>/dev/null; exec sleep 600",
        file.display()
    );
    let spec = shell("writer", &script)?;
    let name = &spec.application;
    assert_eq!(host.run(host.runtime.usage(name))?, Usage::default());
    host.launch(&spec)?;
    let written = Bytes(8 << 20);
    until("its 8 MiB", || {
        let usage = host.run(host.runtime.usage(name))?;
        Ok((usage.written >= written).then_some(()))
    })?;
    host.run(host.runtime.stop(name, GRACE))?;
    assert_eq!(host.run(host.runtime.usage(name))?, Usage::default());
    Ok(())
}

#[test]
fn an_application_gets_less_while_it_is_held_and_is_free_again_afterwards() -> Test {
    let Some((host, name)) = busy(18)? else {
        return Ok(());
    };
    host.run(host.runtime.throttle(&name, Some(LITTLE)))?;
    is_held(&host, &name)?;
    // Another step, and the same again.
    host.run(host.runtime.throttle(&name, Some(Cpus(LITTLE.0 / 2.0))))?;
    host.run(host.runtime.throttle(&name, Some(Cpus(LITTLE.0 / 2.0))))?;
    is_held(&host, &name)?;
    host.run(host.runtime.throttle(&name, None))?;
    is_free(&host, &name)?;
    host.run(host.runtime.throttle(&name, None))?;
    Ok(())
}

#[test]
fn another_daemon_lets_go_what_this_one_held() -> Test {
    let Some((host, name)) = busy(19)? else {
        return Ok(());
    };
    host.run(host.runtime.throttle(&name, Some(LITTLE)))?;
    is_held(&host, &name)?;
    let next = ProcessRuntime::new(host.config.clone());
    host.run(next.throttle(&name, None))?;
    is_free(&host, &name)
}

#[test]
fn what_starts_again_is_free_and_what_does_not_run_is_not_held() -> Test {
    let Some((host, name)) = busy(20)? else {
        return Ok(());
    };
    host.run(host.runtime.throttle(&name, Some(LITTLE)))?;
    host.run(host.runtime.stop(&name, GRACE))?;
    host.run(host.runtime.throttle(&name, Some(LITTLE)))?;
    host.run(host.runtime.start(&name))?;
    is_free(&host, &name)
}
