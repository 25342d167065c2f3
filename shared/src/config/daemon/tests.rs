use super::*;
use crate::api::proxy::Announce;
use crate::config::model::OnStall;
use crate::config::problem::{Problem, Source};

const MIGRATED: &str = "\
version: 1
address: 10.77.0.11
tls:
  ca: /etc/rehome/tls/ca.pem
  certificate: /etc/rehome/tls/host.pem
  key: /etc/rehome/tls/host.key
";

fn migrated(more: &str) -> Result<MigratedConfig, Vec<Problem>> {
    migrated_config(&Source::new("migrated.yml", format!("{MIGRATED}{more}")))
}

fn proxyd(text: &str) -> Result<ProxydConfig, Vec<Problem>> {
    proxyd_config(&Source::new("proxyd.yml", text))
}

fn lines_and_paths(problems: Vec<Problem>) -> Vec<(usize, String)> {
    problems.into_iter().map(|p| (p.line, p.path)).collect()
}

#[test]
fn a_short_migrated_file_gets_the_documented_defaults() {
    let config = migrated("").unwrap();
    assert_eq!(config.listen.to_string(), "[::]:7420");
    assert_eq!(config.metrics.to_string(), "127.0.0.1:9420");
    assert_eq!(config.socket, PathBuf::from("/run/rehome/migrated.sock"));
    assert_eq!(config.state, PathBuf::from("/var/lib/rehome/migrated"));
    assert_eq!(
        config.proxy,
        ProxyEndpoint {
            socket: PROXYD_SOCKET.into(),
            trunk_port: 7421
        }
    );
    assert_eq!(
        config.runtime,
        Runtime::Docker {
            socket: "/var/run/docker.sock".into()
        }
    );
    assert_eq!(config.migration, MigrationLimits::default());
    assert_eq!(config.files, None);
}

#[test]
fn every_migrated_key_is_read() {
    let config = migrated(
        "listen: \"10.77.0.11:1\"\nsocket: /s\nstate: /st\nmetrics: 127.0.0.1:2\n\
         log: {format: json, filter: debug}\npeer_port: 3\n\
         storage: {backend: btrfs, path: /p, image: {path: /i, size: 20GiB}}\n\
         runtime: {kind: process}\nproxy: {socket: /ps, trunk_port: 4}\n\
         migration: {downtime_budget: 1s, hard_cap: 4s, max_rounds: 3, drain: 0s, \
         park_timeout: 30s, park_limit: 9, bandwidth_limit: 100MiB, on_stall: abort}\n\
         limits: {concurrent_migrations: 5, bandwidth: 200MiB, request_bytes: 1MiB, start_alone_after: 9s}\n\
         deployment: /d\napplication: /a\n",
    )
    .unwrap();
    assert_eq!(config.listen.port(), 1);
    assert_eq!(
        config.log,
        Log {
            format: LogFormat::Json,
            filter: "debug".into()
        }
    );
    assert_eq!(config.peer_port, 3);
    assert_eq!(
        config.storage.image,
        Some(PoolImage {
            path: "/i".into(),
            size: Bytes(20 << 30)
        })
    );
    assert_eq!(config.runtime, Runtime::Process);
    assert_eq!(config.proxy.trunk_port, 4);
    assert_eq!(config.migration.drain, Duration::ZERO);
    assert_eq!(config.migration.bandwidth_limit, Some(Bytes(100 << 20)));
    assert_eq!(config.migration.on_stall, OnStall::Abort);
    assert_eq!(
        config.limits,
        MigratedLimits {
            concurrent_migrations: 5,
            bandwidth: Some(Bytes(200 << 20)),
            request_bytes: Bytes(1 << 20),
            start_alone_after: Duration::from_secs(9),
        }
    );
    assert_eq!(
        config.files,
        Some(DeploymentFiles {
            deployment: "/d".into(),
            application: "/a".into()
        })
    );
}

#[test]
fn all_problems_of_migrated_yml_come_at_once() {
    let problems = migrated(
        "listen: 7420\nsoket: /x\nstate: relative\nstorage: {backend: zfs}\n\
         runtime: {kind: vmware}\nmigration: {downtime_budget: 20s}\nlimits: {request_bytes: 12}\n\
         application: /a\n",
    )
    .unwrap_err();
    let cure = &problems.iter().find(|p| p.path == "soket").unwrap().cure;
    assert_eq!(cure, "did you mean 'socket'?");
    let want = [
        (7, "listen"),
        (8, "soket"),
        (9, "state"),
        (10, "storage.backend"),
        (11, "runtime.kind"),
        (12, "migration"),
        (13, "limits.request_bytes"),
        (14, "application"),
    ];
    assert_eq!(
        lines_and_paths(problems),
        want.map(|(l, p)| (l, p.to_owned()))
    );
}

#[test]
fn required_keys_are_named_when_they_are_missing() {
    let problems = migrated_config(&Source::new("m", "listen: \"[::]:1\"\n")).unwrap_err();
    let missing: Vec<_> = problems.iter().map(|p| p.message.as_str()).collect();
    assert_eq!(
        missing,
        [
            "missing key 'address'",
            "missing key 'tls'",
            "missing key 'version'"
        ]
    );
    for text in ["", "- a\n", "a: [", "version: 2\n"] {
        assert!(
            migrated_config(&Source::new("m", text)).is_err(),
            "{text:?}"
        );
        assert!(text.starts_with('v') || proxyd(text).is_err(), "{text:?}");
    }
}

#[test]
fn proxyd_runs_with_a_version_alone() {
    let config = proxyd("version: 1\n").unwrap();
    assert_eq!(config.trunk, Trunk::default());
    assert_eq!(config.trunk.listen.to_string(), "[::]:7421");
    assert_eq!(config.listen, ListenOn::DualStack);
    assert_eq!(config.limits, ProxydLimits::default());
    assert_eq!(config.timeouts, ProxydTimeouts::default());
    assert_eq!(config.fast_path, FastPath::Off);
    assert_eq!((config.host, config.routes.len()), (None, 0));
}

#[test]
fn every_proxyd_key_is_read() {
    let config = proxyd(
        "version: 1\nhost: h1\nsocket: /s\nstate: /st\nmetrics: \"[::1]:2\"\nlog: {filter: warn}\n\
         trunk: {listen: \"10.0.0.1:3\", connect_timeout: 500ms, tls: {ca: /a, certificate: /b, key: /c,\
         \x20 send: plain, accept: both, plain: [10.0.0.0/8], ready: 0}}\nlisten: [\"0.0.0.0\", \"::\"]\n\
         proxy_protocol: {accept_from: [\"10.0.0.0/8\", \"::1\"], header_timeout: 9s}\n\
         fast_path: auto\nlimits: {connections: 1, per_route: 2, parked: 3, park_timeout: 4s, udp_sessions: 5, pipe_bytes: 6MiB,\
         \x20 per_source: 7, parked_bytes: 8MiB, relay_bytes: 9MiB}\n\
         timeouts: {connect: 1s, half_close: 2s, idle: 3s, udp_idle: 4s, keepalive: 5s, user_timeout: 6s,\
         \x20 lifetime: 7h}\n\
         routes:\n- {external: 8080, protocol: http, backend: \"10.0.0.5:80\", fast_path: off,\
         \x20 accept_proxy: off, send_proxy: v2}\n\
         - {external: 8080, protocol: udp, backend: \"[fd00::1]:53\"}\n",
    )
    .unwrap();
    assert_eq!(config.host.map(|h| h.to_string()), Some("h1".into()));
    assert_eq!(config.trunk.connect_timeout, Duration::from_millis(500));
    let tls = config.trunk.tls.unwrap();
    assert_eq!(tls.files.certificate, PathBuf::from("/b"));
    assert_eq!((tls.send, tls.accept), (Sent::Plain, Accepted::Both));
    assert_eq!((tls.plain.len(), tls.ready), (1, 0));
    assert_eq!(
        config.listen,
        ListenOn::Addresses(vec!["0.0.0.0".parse().unwrap(), "::".parse().unwrap()])
    );
    assert_eq!(config.fast_path, FastPath::Auto);
    assert_eq!(config.limits.udp_sessions, 5);
    assert_eq!(config.limits.pipe_bytes, Bytes(6 << 20));
    assert_eq!(config.limits.per_source, NonZeroU32::new(7));
    assert_eq!(config.limits.parked_bytes, Bytes(8 << 20));
    assert_eq!(config.limits.relay_bytes, Bytes(9 << 20));
    assert_eq!(config.timeouts.idle, Some(Duration::from_secs(3)));
    assert_eq!(config.timeouts.lifetime, Some(Duration::from_hours(7)));
    assert_eq!(
        config.routes[0],
        StaticRoute {
            external: 8080,
            protocol: Protocol::Http,
            backend: "10.0.0.5:80".parse().unwrap(),
            fast_path: FastPath::Off,
            accept_proxy: AcceptProxy::Off,
            send_proxy: Announce::ProxyV2,
        }
    );
    assert_eq!(config.routes[1].protocol, Protocol::Udp);
    let told = (config.routes[1].accept_proxy, config.routes[1].send_proxy);
    assert_eq!(told, (AcceptProxy::Auto, Announce::Nothing));
    let proxies = config.proxy_protocol;
    assert_eq!(proxies.header_timeout, Duration::from_secs(9));
    for (address, announces) in [("10.1.2.3", true), ("::1", true), ("11.0.0.1", false)] {
        assert_eq!(proxies.announces(address.parse().unwrap()), announces);
    }
    assert_eq!(config.routes[1].fast_path, FastPath::Auto);
}

#[test]
fn zero_takes_a_limit_of_proxyd_away() {
    let config =
        proxyd("version: 1\nlimits: {per_source: 0}\ntimeouts: {idle: 0s, lifetime: 0s}\n")
            .unwrap();
    assert_eq!(config.limits, ProxydLimits::default());
    assert_eq!(config.timeouts, ProxydTimeouts::default());
}

#[test]
fn all_problems_of_proxyd_yml_come_at_once() {
    let problems = proxyd(
        "version: 1\nlisten: []\nlimits: {parked: 0, per_source: -1, parked_bytes: 5, relay_bytes: 0B}\n\
         timeouts: {idle: 5, lifetime: never}\nroutes:\n\
         - {external: 80, backend: \"10.0.0.5:80\"}\n\
         - {external: 80, protocol: http, backend: \"10.0.0.6:80\"}\n\
         - {external: 0, backend: nowhere, weight: 3}\n",
    )
    .unwrap_err();
    let want = [
        (2, "listen"),
        (3, "limits.parked"),
        (3, "limits.parked_bytes"),
        (3, "limits.per_source"),
        (3, "limits.relay_bytes"),
        (4, "timeouts.idle"),
        (4, "timeouts.lifetime"),
        (7, "routes[1]"),
        (8, "routes[2].backend"),
        (8, "routes[2].external"),
        (8, "routes[2].weight"),
    ];
    assert_eq!(
        lines_and_paths(problems),
        want.map(|(l, p)| (l, p.to_owned()))
    );
}

#[test]
fn a_header_may_take_a_minute_at_most_and_a_network_of_everybody_is_known() {
    let of = |keys: &str| proxyd(&format!("version: 1\nproxy_protocol: {{{keys}}}\n"));
    assert!(of("header_timeout: 1m").is_ok());
    let problems = of("header_timeout: 61s").unwrap_err();
    let want = [(2, "proxy_protocol.header_timeout".to_owned())];
    assert_eq!(lines_and_paths(problems), want);
    let everybody = |networks: &str| {
        let config = of(&format!("accept_from: [{networks}]")).unwrap();
        config.proxy_protocol.everybody().map(|n| n.to_string())
    };
    assert_eq!(everybody("10.0.0.0/8, 192.0.2.1"), None);
    assert_eq!(everybody("192.0.2.1, \"::/0\"").as_deref(), Some("::/0"));
}

#[test]
fn what_is_wrong_about_announced_clients_is_told() {
    let problems = proxyd(
        "version: 1\nproxy_protocol: {accept_from: [10.0.0.1/8, \"::ffff:10.0.0.0/104\", h1],\n\
         \x20 header_timeout: 0s, send: v2}\nroutes:\n\
         - {external: 1, backend: \"10.0.0.5:80\", accept_proxy: v2, send_proxy: v1}\n\
         - {external: 2, protocol: udp, backend: \"10.0.0.5:80\", send_proxy: v2}\n\
         - {external: 3, protocol: udp, backend: \"10.0.0.5:80\", send_proxy: off}\n\
         - {external: 4, protocol: udp, backend: \"10.0.0.5:80\", accept_proxy: off}\n",
    )
    .unwrap_err();
    assert!(problems[0].to_string().contains("10.0.0.0/8"));
    let want = [
        (2, "proxy_protocol.accept_from[0]"),
        (2, "proxy_protocol.accept_from[1]"),
        (2, "proxy_protocol.accept_from[2]"),
        (3, "proxy_protocol.header_timeout"),
        (3, "proxy_protocol.send"),
        (5, "routes[0].accept_proxy"),
        (5, "routes[0].send_proxy"),
        (6, "routes[1].send_proxy"),
        (8, "routes[3].accept_proxy"),
    ];
    assert_eq!(
        lines_and_paths(problems),
        want.map(|(l, p)| (l, p.to_owned()))
    );
}

#[test]
fn trunks_are_plain_without_certificates_and_sealed_with_them() {
    let config = proxyd("version: 1\ntrunk: {}\n").unwrap();
    assert_eq!(config.trunk.tls, None);
    let files = "ca: /a, certificate: /b, key: /c";
    let config = proxyd(&format!("version: 1\ntrunk: {{tls: {{{files}}}}}\n")).unwrap();
    let tls = config.trunk.tls.unwrap();
    assert_eq!((tls.send, tls.accept), (Sent::Tls, Accepted::Tls));
    assert_eq!((tls.plain.len(), tls.ready), (0, 4));
    for (tls, path) in [
        ("{ca: /a, key: /c}", "trunk.tls"),
        ("{ca: a, certificate: /b, key: /c}", "trunk.tls.ca"),
        (
            "{ca: /a, certificate: /b, key: /c, send: both}",
            "trunk.tls.send",
        ),
        (
            "{ca: /a, certificate: /b, key: /c, accept: plain}",
            "trunk.tls.accept",
        ),
        (
            "{ca: /a, certificate: /b, key: /c, plain: [10.0.0.1/8]}",
            "trunk.tls.plain[0]",
        ),
        (
            "{ca: /a, certificate: /b, key: /c, ready: -1}",
            "trunk.tls.ready",
        ),
        (
            "{ca: /a, certificate: /b, key: /c, ready: 65}",
            "trunk.tls.ready",
        ),
        (
            "{ca: /a, certificate: /b, key: /c, mode: x}",
            "trunk.tls.mode",
        ),
        ("yes", "trunk.tls"),
    ] {
        let problems = proxyd(&format!("version: 1\ntrunk: {{tls: {tls}}}\n")).unwrap_err();
        assert_eq!(lines_and_paths(problems), [(2, path.to_owned())], "{tls}");
    }
}
