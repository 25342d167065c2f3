//! One lab with one store, reused for all cases: what a case does to it and sees of it, without
//! starting programs where a file or a socket does as well.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::http;
use rehome_tests::lab::Lab;
use rehome_tests::load::{Load, block_on};
use rehome_tests::program;
use rehome_tests::store::{Redis, Store as _};
use rehome_tests::wait::wait_until;
use serde_json::{Value, json};

use crate::watch::{Groups, Watch};

/// The name of the store, and its external port.
pub(crate) const NAME: &str = "store";
const PORT: u16 = 7000;

/// A point is come to, a daemon comes back, or a move ends within this time. The longest is an
/// abort that the destination has to ask after: it does so every 13 s.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Clients at work all the time, and the pause between the requests of each: somebody is in the
/// middle of a request at nearly any time, and the words of all cases still fit in one answer.
const CLIENTS: usize = 4;
const PACE: Duration = Duration::from_millis(60);

/// The file on a host's disk that keeps the store from starting there.
const REFUSE: &str = "rehome/refuse";

/// Takes a lock that all hosts share for the life of the instance, and says so when another
/// instance has it: `$1` is the lock; the rest is the store.
const SCRIPT: &str = "lock=$1; shift; exec 9>>\"$lock\"; \
     flock -n 9 || { hostname >>\"$lock.twice\"; exit 3; }; \
     [ ! -e /var/lib/rehome/refuse ] || exit 4; \
     exec \"$@\"";

/// The lab and the store.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) lab: &'a Lab,
    doors: Vec<SocketAddr>,
    /// The root directory of each host, as this machine reaches it.
    roots: Vec<PathBuf>,
    pub(crate) groups: Groups,
    pub(crate) watch: Watch,
    pub(crate) load: Load<Redis>,
    /// The host that the store is on, counted from 1.
    pub(crate) at: usize,
}

impl<'a> Stage<'a> {
    /// Deploys the store on the first host and lets clients begin.
    pub(crate) fn open(lab: &'a Lab) -> anyhow::Result<Self> {
        let lock = lab.path("lock");
        let mut command = vec!["sh", "-c", SCRIPT, "store"];
        let lock_text = lock.display().to_string();
        command.push(&lock_text);
        let body = Redis.body(PORT);
        let words = body["command"].as_array().context("no command")?;
        command.extend(words.iter().filter_map(Value::as_str));
        let changes = json!({
            "command": command,
            "stop_grace": "2s",
            // Some blows cost the whole of it, and a case has only so much time.
            "migration": {"hard_cap": "20s"},
            "healthcheck": {"command": ["redis-cli", "-e", "ping"], "interval": "50ms", "retries": 600},
        });
        let body = changed(&body, &changes);
        lab.deploy(&Deployment::new().with(NAME, 1, &body))?.ok()?;
        lab.wait_running(NAME, 1)?;
        let doors = lab.doors(PORT)?;
        block_on(Redis.prepare(doors[0]))?;
        let groups = Groups::of(lab, Redis.process())?;
        let mut stage = Self {
            lab,
            load: Load::start_at(Redis, &doors, CLIENTS, PACE)?,
            doors,
            roots: Vec::new(),
            watch: Watch::start(groups.clone(), lock.with_extension("twice")),
            groups,
            at: 1,
        };
        for number in 1..=lab.hosts().len() {
            let root = stage.find_root(number)?;
            stage.roots.push(root);
        }
        ensure!(
            stage.groups.running() == [1, 0, 0],
            "the watch does not see the store"
        );
        Ok(stage)
    }

    /// Ends the clients, and insists that all they were promised is there.
    pub(crate) fn close(self) -> anyhow::Result<u64> {
        self.watch.saw_one_at_a_time()?;
        self.load.stop_and_verify(&self.doors)?;
        Ok(self.watch.looks())
    }

    fn find_root(&self, number: usize) -> anyhow::Result<PathBuf> {
        let first = self.lab.first_process(self.lab.host(number)?)?;
        Ok(PathBuf::from(format!("/proc/{first}/root")))
    }

    /// A path inside of a host.
    pub(crate) fn inside(&self, number: usize, path: &str) -> PathBuf {
        self.roots[number - 1].join(path)
    }

    /// A path on the disk of a host, which is there while the host is down.
    fn on_disk(&self, number: usize, path: &str) -> anyhow::Result<PathBuf> {
        let disk = Path::new("/var/lib/rehome-lab").join(self.lab.name());
        Ok(disk.join(self.lab.host(number)?.name()).join(path))
    }

    /// What a host says of itself.
    pub(crate) fn report(&self, number: usize) -> anyhow::Result<Value> {
        self.ask(number, "GET", "/peer/v1/host")
    }

    /// Asks the `migrated` of a host.
    pub(crate) fn ask(&self, number: usize, method: &str, path: &str) -> anyhow::Result<Value> {
        http::ask(
            &self.inside(number, "run/rehome/migrated.sock"),
            method,
            path,
        )
    }

    /// The migrations that the hosts of the move know, by their id.
    pub(crate) fn migrations(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for number in [1, 2] {
            let report = self.report(number)?;
            let entries = report["migrations"].as_array().into_iter().flatten();
            all.extend(entries.filter_map(|entry| Some(entry["id"].as_str()?.to_owned())));
        }
        Ok(all)
    }

    /// Keeps the store from starting on a host, or lets it again.
    pub(crate) fn refuse(&self, number: usize, refuse: bool) -> anyhow::Result<()> {
        let file = self.on_disk(number, REFUSE)?;
        if refuse {
            fs::write(&file, "")?;
        } else if file.exists() {
            fs::remove_file(&file)?;
        }
        Ok(())
    }

    /// Lets a daemon wait when it comes to a fail point.
    pub(crate) fn hold(&self, number: usize, point: &str) -> anyhow::Result<()> {
        let order = self.order(number, point);
        let directory = order.parent().context("an order without a directory")?;
        fs::create_dir_all(directory)?;
        // Of an earlier case with the same point.
        drop(fs::remove_file(self.hit(number, point)));
        // Appears whole: a point that is just passed must not read half of it.
        let new = order.with_extension("new");
        fs::write(&new, "hold")?;
        Ok(fs::rename(new, order)?)
    }

    fn order(&self, number: usize, point: &str) -> PathBuf {
        self.inside(number, "run/rehome/failpoints")
            .join(point.replace('/', "__"))
    }

    /// What a daemon writes that waits at a fail point.
    fn hit(&self, number: usize, point: &str) -> PathBuf {
        PathBuf::from(format!("{}.hit", self.order(number, point).display()))
    }

    /// Waits until a daemon waits at a fail point.
    pub(crate) fn wait_held(&self, number: usize, point: &str) -> anyhow::Result<()> {
        let hit = self.hit(number, point);
        wait_until(&format!("h{number} comes to {point}"), PATIENCE, || {
            Ok(hit.exists())
        })
    }

    /// Lets a daemon go on. A host that is down has no order any more.
    pub(crate) fn let_go(&self, number: usize, point: &str) {
        drop(fs::remove_file(self.order(number, point)));
    }

    /// The PID that a daemon has inside of its host; `None` while it is down.
    pub(crate) fn daemon(&self, number: usize, name: &str) -> Option<u32> {
        let file = self.inside(number, &format!("run/rehome/{name}.pid"));
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Kills a daemon with `kill -9`. Its host starts it again.
    pub(crate) fn kill_daemon(&self, number: usize, name: &str) -> anyhow::Result<()> {
        let inner = self.daemon(number, name).context("the daemon is down")?;
        let first = self.roots[number - 1].with_file_name("ns/pid");
        let namespace = fs::read_link(first)?;
        let outer = fs::read_dir("/proc")?
            .flatten()
            .map(|entry| entry.path())
            .find(|process| {
                fs::read_link(process.join("ns/pid")).is_ok_and(|own| own == namespace)
                    && number_inside(process) == Some(inner)
            })
            .with_context(|| format!("{name} of h{number} is not among the processes"))?;
        let pid = outer.file_name().unwrap_or_default();
        program::run(Command::new("kill").arg("-KILL").arg(pid), PATIENCE)?.ok()?;
        wait_until(&format!("{name} of h{number} is dead"), PATIENCE, || {
            Ok(self.daemon(number, name) != Some(inner))
        })
    }

    /// Kills a host, without starting it again.
    pub(crate) fn crash(&self, number: usize) -> anyhow::Result<()> {
        self.lab.host(number)?.crash()
    }

    /// Starts a host that is down.
    pub(crate) fn start(&mut self, number: usize) -> anyhow::Result<()> {
        self.lab.host(number)?.start()?;
        self.roots[number - 1] = self.find_root(number)?;
        Ok(())
    }

    /// Cuts what is between the first two hosts, or mends it: to the third host and to the
    /// clients nothing changes.
    pub(crate) fn cut(&self, cut: bool) -> anyhow::Result<()> {
        let fabric = format!("--net=/run/rehome-lab/{}/fabric", self.lab.name());
        for port in ["h1", "h2"] {
            let mut command = Command::new("nsenter");
            command.args([&fabric, "bridge", "link", "set", "dev", port, "isolated"]);
            command.arg(if cut { "on" } else { "off" });
            program::run(&mut command, PATIENCE)?.ok()?;
        }
        Ok(())
    }

    /// Insists that all words that were acknowledged until now are there, and that there are
    /// more soon.
    pub(crate) fn serves(&self) -> anyhow::Result<()> {
        self.load.wait_served(CLIENTS)?;
        self.load.verify_so_far(self.door())
    }

    /// Where clients reach the store on its own host.
    pub(crate) fn door(&self) -> SocketAddr {
        self.doors[self.at - 1]
    }

    /// The names in a directory of a host's pool, without those of the datasets around them.
    pub(crate) fn pool(&self, number: usize, part: &str) -> Vec<String> {
        let datasets = self.inside(number, "var/lib/rehome/pool").join(part);
        let names = |path: PathBuf| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let entries = if part == "live" {
            names(datasets)
        } else {
            names(datasets).into_iter().flat_map(names).collect()
        };
        let name = |path: PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
        entries.into_iter().filter_map(name).collect()
    }
}

/// The number of a process in its own PID namespace.
fn number_inside(process: &Path) -> Option<u32> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}
