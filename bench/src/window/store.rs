//! The stores: the same programs with the same settings, whoever moves them.
//!
//! Redis does not rewrite its append-only file by itself here. As it comes it would at twice the
//! size: at 100 MiB/s a volume of 256 MiB is then written anew every few seconds, besides what the
//! clients write, so that it grows and changes twice as fast as the scene says, in bursts that fall
//! into one contender's window and not into another's. Whoever runs such a store has it rewritten
//! at quiet times; a trial lasts for seconds.

use rehome_tests::lab::{Lab, Runtime};
use rehome_tests::store::{POSTGRES_IMAGE, Postgres, Store as _};
use serde_json::{Value, json};

use crate::window::plan::{Contender, Kind};

/// Redis with an append-only file that is synced every second, and not rewritten.
const REDIS: [&str; 13] = [
    "redis-server",
    "--bind",
    "0.0.0.0",
    "--protected-mode",
    "no",
    "--appendonly",
    "yes",
    "--auto-aof-rewrite-percentage",
    "0",
    "--save",
    "",
    "--loglevel",
    "warning",
];

/// It accepts connections while it still recovers.
const POSTGRES_READY: &str = "/usr/lib/postgresql/*/bin/pg_isready -q -h 127.0.0.1";

/// From one look at the store's health to the next.
const HEALTH_INTERVAL: &str = "50ms";

/// The default of 10 s would call a move off whose window would be longer, which is worth having and
/// nothing to compare. The tables say of which moves that holds.
const HARD_CAP: &str = "60s";

/// The port of Redis by hand. In its container PostgreSQL has its own.
const REDIS_PORT: u16 = 7101;
const POSTGRES_PORT: u16 = 5432;

/// What runs a store, for Rehome and by hand.
#[must_use]
pub fn runtime(kind: Kind) -> Runtime {
    match kind {
        Kind::Redis => Runtime::Process,
        Kind::Postgres => Runtime::Docker,
    }
}

/// Gives the hosts what the store is made of.
///
/// # Errors
/// When it cannot.
pub fn provide(kind: Kind, lab: &Lab) -> anyhow::Result<()> {
    match kind {
        Kind::Redis => Ok(()),
        Kind::Postgres => Postgres.provide(lab),
    }
}

/// The store as an application of Rehome. But for the hard cap its limits are the default, or
/// without a drain, or with a store held back that writes too fast.
#[must_use]
pub fn body(kind: Kind, external: u16, way: Contender) -> Value {
    let migration = match way {
        Contender::RehomeNoDrain => json!({"hard_cap": HARD_CAP, "drain": "0s"}),
        Contender::RehomeThrottle => json!({"hard_cap": HARD_CAP, "on_stall": "throttle"}),
        Contender::Rehome | Contender::TwoPhase | Contender::Send | Contender::Rsync => {
            json!({"hard_cap": HARD_CAP})
        }
    };
    let command =
        |line: Value| json!({"command": line, "interval": HEALTH_INTERVAL, "retries": 2400});
    match kind {
        Kind::Redis => {
            let place = ["--port", "6379", "--dir", "/data"];
            json!({
                "image": "unused",
                "command": REDIS.iter().chain(&place).collect::<Vec<_>>(),
                "ports": [{"internal": 6379, "external": external}],
                "volume": {"mountpoint": "/data"},
                "migration": migration,
                "healthcheck": command(json!(["redis-cli", "-e", "ping"])),
            })
        }
        Kind::Postgres => json!({
            "image": POSTGRES_IMAGE,
            "ports": [{"internal": 5432, "external": external}],
            "volume": {"mountpoint": "/var/lib/postgresql/data"},
            "migration": migration,
            "healthcheck": command(json!(["sh", "-c", POSTGRES_READY])),
        }),
    }
}

/// The store as a person starts it in a shell.
#[derive(Debug, Clone)]
pub struct ByHand {
    kind: Kind,
    /// Of the container.
    name: String,
}

impl ByHand {
    /// A store; the name differs from that of every other one on the lab.
    #[must_use]
    pub fn new(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
        }
    }

    /// Where it listens on its host.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self.kind {
            Kind::Redis => REDIS_PORT,
            Kind::Postgres => POSTGRES_PORT,
        }
    }

    /// Starts it on a directory.
    #[must_use]
    pub fn start(&self, directory: &str) -> String {
        match self.kind {
            Kind::Redis => {
                let words: Vec<String> = REDIS.iter().map(|word| format!("'{word}'")).collect();
                format!(
                    "{} --port {REDIS_PORT} --dir {directory} >/run/{}.log & store=$!",
                    words.join(" "),
                    self.name
                )
            }
            Kind::Postgres => format!(
                "docker run --detach --name {} --network host \
                 --volume {directory}:/var/lib/postgresql/data {POSTGRES_IMAGE}",
                self.name
            ),
        }
    }

    /// Waits until it is healthy, by the same check as an application has.
    #[must_use]
    pub fn healthy(&self) -> String {
        let check = match self.kind {
            Kind::Redis => format!("redis-cli -e -p {REDIS_PORT} ping"),
            Kind::Postgres => format!("docker exec {} sh -c \"{POSTGRES_READY}\"", self.name),
        };
        format!(
            "healthy=no; for turn in $(seq 2400); do \
             if {check} >/dev/null 2>&1; then healthy=yes; break; fi; sleep 0.05; done; \
             [ $healthy = yes ]"
        )
    }

    /// Stops it, in the shell that started it, and returns when nothing of it runs.
    #[must_use]
    pub fn stop(&self) -> String {
        match self.kind {
            Kind::Redis => "kill -TERM $store; wait $store || true".to_owned(),
            Kind::Postgres => format!("docker stop --time 60 {}", self.name),
        }
    }

    /// Removes what a stopped one leaves besides its data.
    #[must_use]
    pub fn forget(&self) -> String {
        match self.kind {
            Kind::Redis => format!("rm -f /run/{}.log", self.name),
            Kind::Postgres => format!("docker rm --force {}", self.name),
        }
    }
}
