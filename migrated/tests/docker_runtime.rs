//! The Docker runtime against a real engine: a private `dockerd` in network and mount namespaces
//! of its own. Needs root, `dockerd`, `docker`, `busybox` (static), `unshare` and `nsenter`;
//! skips, saying so, where they are absent.

#[path = "docker_runtime/engine.rs"]
mod engine;
#[path = "docker_runtime/throttle.rs"]
mod throttle;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use engine::Engine;
use migrated::runtime::docker::{DockerRuntime, Engine as Kind};
use migrated::runtime::{
    Instance, InstanceSpec, InstanceState, Mount, PullProgress, Runtime, RuntimeError, Stopped,
};
use rehome_shared::config::model::{Image, ImageVersion};
use rehome_shared::ids::{AppName, Epoch};
use rehome_shared::units::Bytes;

/// A busy machine takes its time to do what is asked.
const GRACE: Duration = Duration::from_secs(30);

fn app(name: &str) -> Result<AppName> {
    Ok(AppName::try_new(name)?)
}

fn spec(name: &str, command: &[&str]) -> Result<InstanceSpec> {
    Ok(InstanceSpec {
        application: app(name)?,
        epoch: Epoch(1),
        config_hash: "h1".to_owned(),
        image: Image {
            repository: "rehome-test".to_owned(),
            version: ImageVersion::Tag("1".to_owned()),
        },
        command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
        entrypoint: None,
        environment: BTreeMap::new(),
        mounts: Vec::new(),
        mem_limit: None,
        cpu_shares: None,
        user: None,
        working_dir: None,
        hostname: None,
        stop_signal: None,
        announced: BTreeSet::new(),
    })
}

fn shell(name: &str, script: &str) -> Result<InstanceSpec> {
    spec(name, &["/bin/sh", "-c", script])
}

async fn state_of(runtime: &DockerRuntime, name: &str) -> Result<InstanceState> {
    let application = app(name)?;
    let listed = runtime.list().await?;
    let found = listed
        .into_iter()
        .find(|instance| instance.application == application);
    Ok(found.context("it is not listed")?.state)
}

/// Creates, starts, and waits until it says `up`.
async fn up(runtime: &DockerRuntime, wanted: &InstanceSpec) -> Result<Instance> {
    runtime.create(wanted).await?;
    let started = runtime.start(&wanted.application).await?;
    says(runtime, wanted.application.as_str(), "up").await?;
    Ok(started)
}

/// Waits until the container's output holds a text.
async fn says(runtime: &DockerRuntime, name: &str, text: &str) -> Result<()> {
    let deadline = Instant::now() + GRACE;
    while !runtime.log_tail(&app(name)?, 50).await?.contains(text) {
        ensure!(Instant::now() < deadline, "{name} never said {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn exited(runtime: &DockerRuntime, name: &str) -> Result<InstanceState> {
    let deadline = Instant::now() + GRACE;
    loop {
        let state = state_of(runtime, name).await?;
        if matches!(state, InstanceState::Exited { .. }) {
            return Ok(state);
        }
        ensure!(Instant::now() < deadline, "{name} never ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn reason(error: &RuntimeError) -> String {
    error.to_string()
}

/// A directory with a page, to be mounted at `/data`.
fn volume(engine: &Engine) -> Result<Mount> {
    let source = engine.dir().join("volume");
    fs::create_dir(&source)?;
    fs::write(source.join("page"), "from the volume")?;
    Ok(Mount {
        source,
        target: "/data".to_owned(),
    })
}

#[tokio::test]
async fn an_instance_is_made_once_and_serves() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    runtime.ping().await?;
    let volume = volume(&engine)?;
    let script = "echo \"up $GREETING $(hostname) $(id -u)\"; echo ok > /data/written; \
                  exec httpd -f -p 8080 -h /data";
    let mut wanted = shell("web", script)?;
    wanted
        .environment
        .insert("GREETING".to_owned(), "hello=there".to_owned());
    wanted.hostname = Some("inside".to_owned());
    wanted.user = Some("0".to_owned());
    wanted.mem_limit = Some(Bytes(64 << 20));
    wanted.cpu_shares = Some(512);
    wanted.mounts.push(volume.clone());

    runtime.ensure_image(&wanted, &|_| {}).await?;
    let created = runtime.create(&wanted).await?;
    assert_eq!(created.state, InstanceState::Created);
    assert_eq!(
        (created.epoch, created.config_hash.as_str()),
        (Epoch(1), "h1")
    );
    assert_eq!(
        runtime.create(&wanted).await?,
        created,
        "the same again is the same container"
    );

    let started = runtime.start(&wanted.application).await?;
    assert_eq!(runtime.start(&wanted.application).await?, started);
    assert_eq!(runtime.list().await?, vec![started.clone()]);
    says(&runtime, "web", "up hello=there inside 0").await?;
    let address = started
        .address
        .context("a running instance has an address")?;
    assert_eq!(engine.fetch(address, 8080, "/page")?, "from the volume");
    assert_eq!(fs::read_to_string(volume.source.join("written"))?, "ok\n");
    Ok(())
}

#[tokio::test]
async fn only_an_instance_that_does_not_run_is_replaced_or_removed() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    let volume = volume(&engine)?;
    let mut wanted = shell("db", "echo up; exec sleep 1000")?;
    wanted.mounts.push(volume.clone());
    let first = up(&runtime, &wanted).await?;

    let changed = InstanceSpec {
        config_hash: "h2".to_owned(),
        ..wanted.clone()
    };
    let error = runtime
        .create(&changed)
        .await
        .err()
        .context("replaced a running container")?;
    assert!(matches!(error, RuntimeError::Create { .. }), "{error}");
    assert!(
        runtime.remove(&wanted.application).await.is_err(),
        "removed a running container"
    );
    assert_eq!(runtime.list().await?, vec![first.clone()]);

    assert_eq!(
        runtime.stop(&wanted.application, GRACE).await?,
        Stopped::Gracefully
    );
    let second = runtime.create(&changed).await?;
    assert_ne!(second.id, first.id);
    assert_eq!(second.config_hash, "h2");
    let third = runtime
        .create(&InstanceSpec {
            epoch: Epoch(2),
            ..changed
        })
        .await?;
    assert_ne!(third.id, second.id);
    assert_eq!(
        (third.epoch, third.state),
        (Epoch(2), InstanceState::Created)
    );
    runtime.remove(&wanted.application).await?;
    runtime.remove(&wanted.application).await?;
    assert_eq!(runtime.list().await?, Vec::<Instance>::new());
    assert_eq!(
        runtime.stop(&wanted.application, GRACE).await?,
        Stopped::NotRunning
    );
    assert!(
        volume.source.join("page").exists(),
        "a removal took the volume along"
    );
    Ok(())
}

#[tokio::test]
async fn a_stop_leaves_no_process_behind() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    // Without a handler, and with children: the engine's init passes the signal on.
    let plain = shell("plain", "sleep 1000 & echo up; exec sleep 1000")?;
    up(&runtime, &plain).await?;
    assert!(engine.container_processes()? >= 2);
    let began = Instant::now();
    assert_eq!(
        runtime.stop(&plain.application, GRACE).await?,
        Stopped::Gracefully
    );
    assert!(began.elapsed() < GRACE, "{:?}", began.elapsed());
    assert_eq!(engine.container_processes()?, 0);
    assert_eq!(
        runtime.stop(&plain.application, GRACE).await?,
        Stopped::NotRunning
    );

    let paused = shell("paused", "echo up; exec sleep 1000")?;
    up(&runtime, &paused).await?;
    engine.docker(&["pause", "rehome-paused"])?;
    assert_eq!(
        runtime.stop(&paused.application, GRACE).await?,
        Stopped::Gracefully
    );
    assert_eq!(engine.container_processes()?, 0);
    Ok(())
}

#[tokio::test]
async fn a_stop_signals_waits_and_only_then_kills() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    let script = "trap 'echo bye; exit 42' INT; echo up; while :; do sleep 0.1; done";
    let mut polite = shell("polite", script)?;
    polite.stop_signal = Some("SIGINT".to_owned());
    up(&runtime, &polite).await?;
    assert_eq!(
        runtime.stop(&polite.application, GRACE).await?,
        Stopped::Gracefully
    );
    let state = state_of(&runtime, "polite").await?;
    assert_eq!(
        state,
        InstanceState::Exited {
            code: Some(42),
            reason: None
        }
    );
    says(&runtime, "polite", "bye").await?;

    let deaf = shell("deaf", "trap '' TERM; echo up; while :; do sleep 0.1; done")?;
    up(&runtime, &deaf).await?;
    let (grace, began) = (Duration::from_millis(700), Instant::now());
    assert_eq!(
        runtime.stop(&deaf.application, grace).await?,
        Stopped::Killed
    );
    assert!(began.elapsed() >= grace);
    assert_eq!(engine.container_processes()?, 0);
    let state = state_of(&runtime, "deaf").await?;
    assert_eq!(
        state,
        InstanceState::Exited {
            code: Some(137),
            reason: None
        }
    );
    Ok(())
}

#[tokio::test]
async fn nothing_is_made_without_its_volume_or_over_anothers_container() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    let mut homeless = shell("homeless", "true")?;
    let missing = engine.dir().join("no-such-volume");
    homeless.mounts.push(Mount {
        source: missing.clone(),
        target: "/data".to_owned(),
    });
    let error = runtime
        .create(&homeless)
        .await
        .err()
        .context("made without its volume")?;
    assert!(reason(&error).contains("no-such-volume"), "{error}");
    assert!(!missing.exists(), "a volume was invented");

    engine.docker(&[
        "create",
        "--name",
        "rehome-taken",
        "rehome-test:1",
        "/bin/sh",
    ])?;
    let taken = shell("taken", "true")?;
    let error = runtime
        .create(&taken)
        .await
        .err()
        .context("took another's container")?;
    assert!(reason(&error).contains("already in use"), "{error}");
    runtime.remove(&taken.application).await?;
    engine.docker(&["inspect", "rehome-taken"])?;
    assert_eq!(runtime.list().await?, Vec::<Instance>::new());
    Ok(())
}

#[tokio::test]
async fn a_start_that_fails_says_why() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    // An init of the image's own is not put under the engine's, so the engine itself fails.
    let absent = InstanceSpec {
        entrypoint: Some(vec!["/no/such/tini".to_owned()]),
        ..spec("absent", &[])?
    };
    runtime.create(&absent).await?;
    let error = runtime
        .start(&absent.application)
        .await
        .err()
        .context("started nothing")?;
    assert!(matches!(error, RuntimeError::Start { .. }), "{error}");
    assert!(reason(&error).contains("/no/such/tini"), "{error}");
    let InstanceState::Exited {
        reason: Some(why), ..
    } = state_of(&runtime, "absent").await?
    else {
        bail!("the failed start is not remembered");
    };
    assert!(why.contains("/no/such/tini"), "{why}");

    let lost = spec("lost", &["/no/such/program"])?;
    runtime.create(&lost).await?;
    runtime.start(&lost.application).await?;
    let state = exited(&runtime, "lost").await?;
    assert_eq!(
        state,
        InstanceState::Exited {
            code: Some(127),
            reason: None
        }
    );
    assert!(
        runtime
            .log_tail(&lost.application, 5)
            .await?
            .contains("/no/such/program")
    );

    // One that ends at once has started: whether it is healthy is the caller's question.
    let brief = shell("brief", "echo oops >&2; exit 3")?;
    runtime.create(&brief).await?;
    runtime.start(&brief.application).await?;
    let state = exited(&runtime, "brief").await?;
    assert_eq!(
        state,
        InstanceState::Exited {
            code: Some(3),
            reason: None
        }
    );
    assert_eq!(runtime.log_tail(&brief.application, 5).await?, "oops");

    let error = runtime
        .start(&app("nobody")?)
        .await
        .err()
        .context("started nobody")?;
    assert!(reason(&error).contains("no container"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_missing_image_is_an_error_soon() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    let mut wanted = shell("db", "true")?;
    // Nobody listens there in the engine's network namespace.
    wanted.image.repository = "127.0.0.1:5000/acme/db".to_owned();
    let seen = Mutex::new(PullProgress::default());
    let note = |progress| {
        if let Ok(mut seen) = seen.lock() {
            *seen = progress;
        }
    };
    let error = runtime
        .check_image(&wanted)
        .await
        .err()
        .context("a registry answered")?;
    assert!(
        matches!(error, RuntimeError::ImageMissing { .. }),
        "{error}"
    );
    runtime.check_image(&shell("here", "true")?).await?;
    let pull = runtime.ensure_image(&wanted, &note);
    let error = tokio::time::timeout(Duration::from_secs(30), pull).await?;
    let error = error.err().context("pulled from nowhere")?;
    assert!(
        matches!(error, RuntimeError::ImageMissing { .. }),
        "{error}"
    );
    let text = reason(&error);
    assert!(
        text.contains("127.0.0.1:5000/acme/db:1") && text.contains("refused"),
        "{text}"
    );
    let error = runtime
        .create(&wanted)
        .await
        .err()
        .context("made without its image")?;
    assert!(reason(&error).contains("is not on this host"), "{error}");
    Ok(())
}

#[tokio::test]
async fn commands_run_inside_and_hung_ones_are_killed() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    let wanted = shell("db", "echo up; exec sleep 1000")?;
    runtime.create(&wanted).await?;
    let sh = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned);
    let early = runtime.exec(&wanted.application, &sh("true"), GRACE).await;
    assert!(
        early.is_err(),
        "a command ran in a container that does not run"
    );
    runtime.start(&wanted.application).await?;
    says(&runtime, "db", "up").await?;
    let before = engine.container_processes()?;
    assert!(
        runtime
            .exec(&wanted.application, &sh("echo noise; exit 0"), GRACE)
            .await?
    );
    assert!(
        !runtime
            .exec(&wanted.application, &sh("exit 7"), GRACE)
            .await?
    );
    let began = Instant::now();
    let limit = Duration::from_millis(400);
    assert!(
        !runtime
            .exec(&wanted.application, &sh("exec sleep 1000"), limit)
            .await?
    );
    assert!(began.elapsed() < GRACE);
    let deadline = Instant::now() + GRACE;
    while engine.container_processes()? > before {
        ensure!(
            Instant::now() < deadline,
            "the command that hung still runs"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let nonsense = ["/no/such/check".to_owned()];
    let answer = runtime.exec(&wanted.application, &nonsense, GRACE).await;
    assert!(
        !answer.unwrap_or(false),
        "a check that does not exist passed"
    );
    Ok(())
}

#[tokio::test]
async fn a_restart_of_the_engine_is_survived() -> Result<()> {
    let Some(mut engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    let wanted = shell("db", "echo up; exec sleep 1000")?;
    let created = runtime.create(&wanted).await?;
    runtime.start(&wanted.application).await?;
    engine.stop()?;
    let error = runtime
        .list()
        .await
        .err()
        .context("an engine that is down answered")?;
    assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error}");
    let fresh = DockerRuntime::new(Kind::Docker, &engine.socket());
    let error = fresh
        .ping()
        .await
        .err()
        .context("an engine that is down answered")?;
    assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error}");
    engine.run()?;
    fresh.ping().await?;
    let InstanceState::Exited { .. } = state_of(&runtime, "db").await? else {
        bail!("the engine restarted it by itself");
    };
    let started = runtime.start(&wanted.application).await?;
    assert_eq!(
        (started.id, started.state),
        (created.id, InstanceState::Running)
    );
    assert_eq!(
        runtime.stop(&wanted.application, GRACE).await?,
        Stopped::Gracefully
    );
    Ok(())
}
