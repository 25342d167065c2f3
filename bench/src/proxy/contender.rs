//! The relays: where their programs are, how they are started, and how they are configured. Each
//! as its documentation says, with as many workers as it has processors, limits that do not bind,
//! and no idle times. One that can try again when a backend refuses is told to: the file is the
//! same for every scene.

use std::path::{Path, PathBuf};

use clap::Args;
use rehome_tests::program;
use serde::{Deserialize, Serialize};

use crate::machine;
use crate::proxy::control;
use crate::proxy::network::{RELAY, SERVER};
use crate::proxy::plan::Contender;

/// Where the relays' programs are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// Ours.
    pub proxyd: PathBuf,
    /// Debian's.
    pub haproxy: PathBuf,
    /// Debian's, unpacked.
    pub nginx: PathBuf,
    /// Its stream module.
    pub nginx_stream: PathBuf,
    /// Of a Python package.
    pub envoy: PathBuf,
    /// Listens, and starts the next one with the socket.
    pub socket_activate: PathBuf,
    /// systemd's relay.
    pub socket_proxyd: PathBuf,
}

/// Where other programs are than where their packages put them.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// The program of Envoy. Without one, Envoy is left out
    #[arg(long, value_name = "FILE")]
    pub envoy: Option<PathBuf>,
}

impl Programs {
    /// Where they are on this machine, if they are there.
    ///
    /// # Errors
    /// When ours is not built.
    pub fn here(places: &Places) -> anyhow::Result<Self> {
        let tools = rehome_tests::project()?.join("target/tools");
        Ok(Self {
            proxyd: program::built("proxyd")?,
            haproxy: "/usr/sbin/haproxy".into(),
            nginx: tools.join("usr/sbin/nginx"),
            nginx_stream: tools.join("usr/lib/nginx/modules/ngx_stream_module.so"),
            envoy: places.envoy.clone().unwrap_or_else(|| "envoy".into()),
            socket_activate: "/usr/bin/systemd-socket-activate".into(),
            socket_proxyd: "/usr/lib/systemd/systemd-socket-proxyd".into(),
        })
    }

    /// What a contender needs that is not there.
    #[must_use]
    pub fn missing(&self, contender: Contender) -> Option<&Path> {
        let needed = match contender {
            Contender::Rehome => vec![&self.proxyd],
            Contender::Haproxy | Contender::HaproxySplice | Contender::HaproxyPaused => {
                vec![&self.haproxy]
            }
            Contender::Nginx => vec![&self.nginx, &self.nginx_stream],
            Contender::Envoy => vec![&self.envoy],
            Contender::Systemd => vec![&self.socket_activate, &self.socket_proxyd],
            Contender::Routed => vec![],
        };
        let missing = needed.into_iter().find(|program| !program.is_file());
        missing.map(PathBuf::as_path)
    }

    /// What they say of themselves.
    #[must_use]
    pub fn versions(&self) -> Vec<String> {
        let asked = [
            (&self.haproxy, "-v"),
            (&self.nginx, "-v"),
            (&self.envoy, "--version"),
            (&self.socket_activate, "--version"),
        ];
        let there = asked.into_iter().filter(|(program, _)| program.is_file());
        there
            .map(|(program, word)| machine::said(&program.display().to_string(), &[word]))
            .collect()
    }
}

/// Not `splice-auto`, which splices only what its heuristic takes for a fast stream.
const SPLICE: &str = "    option splice-request\n    option splice-response\n";
/// How often HAProxy tries again, each time after its second of pause.
const RETRIES: u32 = 10;
/// How often Envoy tries, after pauses that grow.
const ATTEMPTS: u32 = 30;

/// What a relay shall be.
#[derive(Debug, Clone)]
pub struct Task<'a> {
    /// The programs.
    pub programs: &'a Programs,
    /// Where it listens, and where the server does.
    pub port: u16,
    /// A directory of its own.
    pub directory: &'a Path,
    /// How many descriptors it may have.
    pub descriptors: u64,
    /// How many workers it shall have. Ours and systemd's are not asked: ours has as many as it
    /// finds processors, systemd's always one.
    pub workers: usize,
}

/// How a relay is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The name and the text of the file that it is told of.
    pub file: Option<(PathBuf, String)>,
}

impl Start {
    fn with_file(task: &Task<'_>, text: String, command: &[&str]) -> Self {
        let path = task.directory.join("relay.conf");
        let mut command: Vec<String> = command.iter().map(ToString::to_string).collect();
        command.push(path.display().to_string());
        Self {
            command,
            file: Some((path, text)),
        }
    }
}

/// How a contender is started; `None` where no relay is.
#[must_use]
pub fn start(contender: Contender, task: &Task<'_>) -> Option<Start> {
    let programs = task.programs;
    let name = |path: &Path| path.display().to_string();
    Some(match contender {
        Contender::Routed => return None,
        Contender::Rehome => {
            let program = name(&programs.proxyd);
            Start::with_file(task, rehome(task), &[&program, "--config"])
        }
        Contender::HaproxySplice => {
            let program = name(&programs.haproxy);
            let text = haproxy(task, SPLICE);
            Start::with_file(task, text, &[&program, "-db", "-f"])
        }
        Contender::Haproxy | Contender::HaproxyPaused => {
            let program = name(&programs.haproxy);
            Start::with_file(task, haproxy(task, ""), &[&program, "-db", "-f"])
        }
        Contender::Nginx => {
            let program = name(&programs.nginx);
            let prefix = name(task.directory);
            let words = [&program, "-e", "stderr", "-p", &prefix, "-c"];
            Start::with_file(task, nginx(task), &words)
        }
        Contender::Envoy => {
            let program = name(&programs.envoy);
            let workers = task.workers.to_string();
            let some = ["--concurrency", &workers, "--disable-hot-restart"];
            let quiet = ["-l", "error", "-c"];
            let words = [&[program.as_str()], some.as_slice(), &quiet].concat();
            Start::with_file(task, envoy(task), &words)
        }
        Contender::Systemd => Start {
            command: vec![
                name(&programs.socket_activate),
                format!("--listen={RELAY}:{}", task.port),
                name(&programs.socket_proxyd),
                format!("--connections-max={}", task.descriptors),
                format!("{SERVER}:{}", task.port),
            ],
            file: None,
        },
    })
}

/// Its routes come over the socket, as `migrated` tells them.
fn rehome(task: &Task<'_>) -> String {
    let (directory, socket) = (task.directory.display(), control::socket(task.directory));
    format!(
        "version: 1\n\
         host: {RELAY}\n\
         socket: {socket}\n\
         state: {directory}/state\n\
         metrics: 127.0.0.1:9421\n\
         log:\n  filter: warn\n\
         trunk:\n  listen: \"127.0.0.1:7421\"\n\
         listen: [\"{RELAY}\"]\n\
         limits:\n  connections: 30000\n  per_route: 30000\n",
        socket = socket.display(),
    )
}

/// HAProxy fits its own limit to the descriptors that it may have.
fn haproxy(task: &Task<'_>, option: &str) -> String {
    let (port, workers) = (task.port, task.workers);
    format!(
        "global\n    nbthread {workers}\n    stats socket {socket} mode 600 level admin\n\
         defaults\n    mode tcp\n    retries {RETRIES}\n    timeout connect 5s\n    \
         timeout client 1h\n    timeout server 1h\n{option}\
         listen bench\n    bind {RELAY}:{port}\n    server one {SERVER}:{port}\n",
        socket = control::socket(task.directory).display(),
    )
}

/// A connection of a client and the one to the server count both.
fn nginx(task: &Task<'_>) -> String {
    let (port, directory) = (task.port, task.directory.display());
    let (module, descriptors) = (task.programs.nginx_stream.display(), task.descriptors);
    let workers = task.workers;
    let connections = descriptors.saturating_sub(descriptors / 16);
    format!(
        "load_module {module};\n\
         daemon off;\n\
         worker_processes {workers};\n\
         worker_rlimit_nofile {descriptors};\n\
         error_log stderr;\n\
         pid {directory}/nginx.pid;\n\
         events {{ worker_connections {connections}; }}\n\
         stream {{\n    server {{\n        listen {RELAY}:{port} backlog=4096;\n        \
         proxy_pass {SERVER}:{port};\n        proxy_connect_timeout 5s;\n        \
         proxy_timeout 1h;\n    }}\n}}\n"
    )
}

/// Envoy reads JSON where it reads YAML.
fn envoy(task: &Task<'_>) -> String {
    let (port, most) = (task.port, task.descriptors);
    let address =
        |host: &str| serde_json::json!({"socket_address": {"address": host, "port_value": port}});
    let filter = serde_json::json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/\
                      envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "bench",
            "cluster": "bench",
            "idle_timeout": "0s",
            "max_connect_attempts": ATTEMPTS,
            "backoff_options": {"base_interval": "0.1s", "max_interval": "0.5s"},
        },
    });
    let endpoint = serde_json::json!({"endpoint": {"address": address(SERVER)}});
    let config = serde_json::json!({
        "static_resources": {
            "listeners": [{
                "name": "bench",
                "address": address(RELAY),
                "tcp_backlog_size": 4096,
                "filter_chains": [{"filters": [filter]}],
            }],
            "clusters": [{
                "name": "bench",
                "type": "STATIC",
                "connect_timeout": "5s",
                "circuit_breakers": {"thresholds": [
                    {"max_connections": most, "max_pending_requests": most},
                ]},
                "load_assignment": {
                    "cluster_name": "bench",
                    "endpoints": [{"lb_endpoints": [endpoint]}],
                },
            }],
        },
    });
    config.to_string()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    fn programs() -> Programs {
        Programs {
            proxyd: "/p/proxyd".into(),
            haproxy: "/p/haproxy".into(),
            nginx: "/p/nginx".into(),
            nginx_stream: "/p/stream.so".into(),
            envoy: "/p/envoy".into(),
            socket_activate: "/p/activate".into(),
            socket_proxyd: "/p/socket-proxyd".into(),
        }
    }

    #[test]
    fn every_relay_is_told_the_same_ends() {
        let programs = programs();
        let task = Task {
            programs: &programs,
            port: 5002,
            directory: Path::new("/run/bench"),
            descriptors: 20_000,
            workers: 3,
        };
        for contender in Contender::value_variants() {
            let Some(start) = start(*contender, &task) else {
                assert_eq!(*contender, Contender::Routed);
                continue;
            };
            let mut told = start.command.join(" ");
            if let Some((path, text)) = &start.file {
                assert!(told.ends_with(&path.display().to_string()), "{told}");
                told += text;
            }
            // Ours is told the route later.
            let words = [RELAY, SERVER, "5002"];
            let all = if *contender == Contender::Rehome {
                1
            } else {
                3
            };
            for word in &words[..all] {
                assert!(told.contains(word), "{contender:?}: no {word} in {told}");
            }
        }
    }

    #[test]
    fn our_configuration_is_a_right_one() {
        let programs = programs();
        let task = Task {
            programs: &programs,
            port: 5002,
            directory: Path::new("/run/bench"),
            descriptors: 20_000,
            workers: 1,
        };
        let source = rehome_shared::config::Source::new("bench", rehome(&task));
        let read = rehome_shared::config::daemon::proxyd_config(&source);
        assert_eq!(read.unwrap().socket, control::socket(task.directory));
    }

    #[test]
    fn whoever_can_be_told_has_as_many_workers_as_the_task_says() {
        let programs = programs();
        let task = Task {
            programs: &programs,
            port: 5002,
            directory: Path::new("/run/bench"),
            descriptors: 20_000,
            workers: 3,
        };
        let told = |contender| {
            let start = start(contender, &task).unwrap();
            let text = start.file.map(|(_, text)| text).unwrap_or_default();
            start.command.join(" ") + &text
        };
        assert!(told(Contender::Haproxy).contains("nbthread 3\n"));
        assert!(told(Contender::Nginx).contains("worker_processes 3;"));
        assert!(told(Contender::Envoy).contains("--concurrency 3 "));
    }

    #[test]
    fn what_is_missing_is_named() {
        let programs = programs();
        assert_eq!(
            programs.missing(Contender::Nginx),
            Some(Path::new("/p/nginx"))
        );
        assert_eq!(programs.missing(Contender::Routed), None);
    }
}
