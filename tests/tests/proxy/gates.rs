//! A proxy that dies at any moment of any verb of its gate, while clients come: what was answered
//! is kept, what was not is there whole or not at all, a verb may be repeated, and every client has
//! its answer within its budget.
//!
//! The proxy is the build with fail points, and is started again at once, as systemd does.

mod clients;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::http::Answer;
use rehome_tests::network;
use rehome_tests::proxy::{PATIENCE, Proxy, Setup, Version, local, park_limits, route};
use rehome_tests::wait::{wait_for, wait_until};
use rustix::process::Signal;

use crate::peer::{at_once, connect};
use clients::{Application, Clients};

const PORT: u16 = 5000;
const CLIENTS: usize = 12;

/// A verb of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Set,
    Prepare,
    Drain,
    Freeze,
    Commit,
    Rollback,
}

/// When the proxy dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// At this fail point.
    At(&'static str),
    /// While it works on the verb.
    During,
    /// When it has answered.
    Answered,
}

/// What the disk says then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Before,
    After,
}

const BEFORE: (Moment, Kept) = (Moment::At("store/routes/before"), Kept::Before);
const AFTER: (Moment, Kept) = (Moment::At("store/routes/after"), Kept::After);
const ANSWERED: (Moment, Kept) = (Moment::Answered, Kept::After);

const MATRIX: [(Verb, &[(Moment, Kept)]); 6] = [
    (Verb::Set, &[BEFORE, AFTER, ANSWERED]),
    (
        Verb::Prepare,
        &[
            BEFORE,
            AFTER,
            (Moment::At("gate/prepare/done"), Kept::After),
            ANSWERED,
        ],
    ),
    (
        Verb::Drain,
        &[
            (Moment::At("gate/check/done"), Kept::After),
            (Moment::During, Kept::After),
            ANSWERED,
        ],
    ),
    (
        Verb::Freeze,
        &[(Moment::At("gate/check/done"), Kept::After), ANSWERED],
    ),
    (
        Verb::Commit,
        &[
            BEFORE,
            AFTER,
            (Moment::At("gate/commit/done"), Kept::After),
            ANSWERED,
        ],
    ),
    (
        Verb::Rollback,
        &[
            BEFORE,
            AFTER,
            (Moment::At("gate/rollback/done"), Kept::After),
            ANSWERED,
        ],
    ),
];

/// Fail points are files of a directory that is the proxy's alone.
const ALONE: &str =
    "mount -t tmpfs none /run && mkdir -p /run/rehome/failpoints && exec \"$0\" \"$@\"";

/// A host whose application moves from instance to instance.
struct Stage {
    proxy: Proxy,
    instances: [Application; 2],
    /// Where it is.
    at: usize,
    epoch: u64,
    clients: Clients,
}

#[test]
fn a_proxy_that_dies_at_any_verb_of_its_gate_keeps_its_word_and_its_clients() -> anyhow::Result<()>
{
    network::own()?;
    let setup = Setup {
        program: "proxyd-faulty",
        ..Setup::default()
    };
    let alone = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        ALONE,
    ];
    let proxy = Proxy::start(1, setup.through(&alone))?;
    let instances = [Application::start(1)?, Application::start(2)?];
    proxy.set(&[route(
        PORT,
        "db",
        Version(1, 0),
        &local(instances[0].address()),
    )])?;
    let clients = Clients::begin(proxy.door(PORT), CLIENTS);
    let mut stage = Stage {
        proxy,
        instances,
        at: 0,
        epoch: 1,
        clients,
    };
    for (verb, moments) in MATRIX {
        for (moment, kept) in moments {
            let played = stage.play(verb, *moment, *kept);
            played.with_context(|| format!("{verb:?}, {moment:?}"))?;
        }
    }
    println!("{}", stage.clients.stop()?);
    wait_until("nothing is left", PATIENCE, || {
        Ok(stage.proxy.active(PORT)? + stage.proxy.parked(PORT)? == 0)
    })
}

impl Stage {
    /// A whole handoff, in which the proxy dies once.
    fn play(&mut self, dies_at: Verb, moment: Moment, kept: Kept) -> anyhow::Result<()> {
        let verbs: &[Verb] = match dies_at {
            Verb::Set => &[Verb::Set],
            Verb::Rollback => &[Verb::Prepare, Verb::Drain, Verb::Rollback],
            Verb::Prepare | Verb::Drain | Verb::Freeze | Verb::Commit => {
                &[Verb::Prepare, Verb::Drain, Verb::Freeze, Verb::Commit]
            }
        };
        // Somebody has asked and waits for an answer, so a drain waits.
        let busy = (moment == Moment::During).then(|| self.busy_client());
        let _busy = busy.transpose()?;
        for verb in verbs {
            if *verb == dies_at {
                self.die(*verb, moment, kept)?;
                // Whoever asked has no answer, and asks again.
            }
            self.say(*verb)?.ok().with_context(|| format!("{verb:?}"))?;
            self.check(*verb)?;
        }
        let next = 1 - self.at;
        match dies_at {
            Verb::Rollback => {}
            Verb::Set | Verb::Prepare | Verb::Drain | Verb::Freeze | Verb::Commit => {
                self.at = next;
            }
        }
        self.epoch += 1;
        self.clients.make_progress()?;
        self.only_the_instance_is_reached()
    }

    fn busy_client(&self) -> anyhow::Result<TcpStream> {
        let mut client = connect(self.proxy.door(PORT))?;
        client.write_all(b"?")?;
        client.read_exact(&mut [0])?;
        client.write_all(b"...")?;
        Ok(client)
    }

    /// The version that a verb leaves behind, and the gate.
    fn left_by(&self, verb: Verb) -> (Version, &'static str) {
        match verb {
            // A rollback ends an epoch here, so that the next handoff begins as all do.
            Verb::Set | Verb::Commit | Verb::Rollback => (Version(self.epoch + 1, 0), "open"),
            Verb::Prepare | Verb::Drain | Verb::Freeze => (Version(self.epoch, 1), "parked"),
        }
    }

    fn say(&self, verb: Verb) -> anyhow::Result<Answer> {
        let (proxy, (at, _)) = (&self.proxy, self.left_by(verb));
        let next = local(self.instances[1 - self.at].address());
        match verb {
            Verb::Set => proxy.try_set(&[route(PORT, "db", at, &next)]),
            Verb::Prepare => {
                proxy.try_prepare("db", at, &park_limits(1000, Duration::from_mins(1)))
            }
            Verb::Drain => proxy.try_drain("db", at, Duration::from_secs(15)),
            Verb::Freeze => proxy.try_freeze("db", at),
            Verb::Commit => proxy.try_commit("db", at, PORT, &next),
            Verb::Rollback => proxy.try_rollback("db", at),
        }
    }

    fn check(&self, after: Verb) -> anyhow::Result<()> {
        let (wanted, found) = (self.left_by(after), self.proxy.gate(PORT)?);
        ensure!(
            (wanted.0, wanted.1) == (found.0, found.1.as_str()),
            "the gate is {found:?}, not {wanted:?}"
        );
        Ok(())
    }

    /// Says a verb, has the proxy die of it, starts it again and looks at what it kept.
    fn die(&mut self, verb: Verb, moment: Moment, kept: Kept) -> anyhow::Result<()> {
        let before = self.proxy.gate(PORT)?;
        match moment {
            Moment::At(point) => {
                let order = self.point(point)?;
                fs::write(&order, "kill")?;
                let answer = self.say(verb);
                ensure!(answer.is_err(), "it answered {answer:?} and lives");
            }
            Moment::During => {
                let this = &*self;
                let (answer, ()) = at_once(
                    || Ok(this.say(verb)),
                    || {
                        let mut looks = 0;
                        wait_for("it is at work", PATIENCE, || {
                            looks += 1;
                            Ok((looks > 3).then_some(()))
                        })?;
                        this.proxy.signal(Signal::KILL)
                    },
                )?;
                ensure!(answer.is_err(), "it was over before: {answer:?}");
            }
            Moment::Answered => {
                self.say(verb)?.ok()?;
                self.proxy.signal(Signal::KILL)?;
            }
        }
        self.proxy.wait_for_end()?;
        self.proxy.start_again()?;
        match kept {
            Kept::After => self.check(verb).context("what it kept")?,
            Kept::Before => {
                let found = self.proxy.gate(PORT)?;
                ensure!(
                    found == before,
                    "it kept {found:?}, and nothing was durable"
                );
            }
        }
        let corrupt = self.proxy.metric("rehome_proxy_store_corrupt_total", &[])?;
        let mut files = fs::read_dir(self.proxy.directory().join("state"))?;
        let aside = files.any(|file| file.is_ok_and(|file| file.file_name() != "routes"));
        ensure!(corrupt == 0 && !aside, "the routes were damaged");
        Ok(())
    }

    /// The file of a fail point, as this process sees it.
    fn point(&self, name: &str) -> anyhow::Result<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.proxy.pid()?));
        let directory = root.join("run/rehome/failpoints");
        ensure!(directory.is_dir(), "the proxy has no directory of its own");
        Ok(directory.join(name.replace('/', "__")))
    }

    /// Who comes now comes to where the application is, and to no former instance.
    fn only_the_instance_is_reached(&self) -> anyhow::Result<()> {
        let former = &self.instances[1 - self.at];
        let before = former.accepted();
        self.clients.make_progress()?;
        ensure!(former.accepted() == before, "a former instance was reached");
        Ok(())
    }
}
