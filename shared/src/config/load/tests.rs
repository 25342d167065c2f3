//! What the contract's cases leave out, in the same spirit: small files and where they are wrong.

use serde_json::{Value, json};

use super::*;
use crate::config::meaning::meaning;

fn loaded(application: &str, deployment: Option<&str>) -> Result<Loaded, Vec<Problem>> {
    let deployment = deployment.map(|text| Source::new("d.yml", text));
    load(&Source::new("a.yml", application), deployment.as_ref())
}

/// The native application `db` with these further lines.
fn native(body: &str) -> String {
    format!("version: 1\napplications:\n  db:\n    image: x\n{body}")
}

fn db(body: &str) -> Value {
    let text = native(body);
    let loaded = loaded(&text, None).unwrap_or_else(|problems| panic!("{text}: {problems:#?}"));
    meaning(&loaded)["applications"]["db"].clone()
}

/// Refused with exactly one problem: its path and its message.
fn refused(application: &str, deployment: Option<&str>) -> (String, String) {
    let mut problems = loaded(application, deployment).expect_err(application);
    assert_eq!(problems.len(), 1, "{application}: {problems:#?}");
    let problem = problems.remove(0);
    (problem.path, problem.message)
}

fn is_refused_at(path: &str, values: &[&str]) {
    let key = path.split(['.', '[']).next().unwrap();
    for value in values {
        let (found, message) = refused(&native(&format!("    {key}: {value}\n")), None);
        assert_eq!(
            found,
            format!("applications.db.{path}"),
            "{value}: {message}"
        );
    }
}

#[test]
fn ports_and_links_refuse_values_of_the_wrong_kind() {
    is_refused_at("ports", &["5", "{internal: 80, external: 80}", "true", ""]);
    is_refused_at(
        "ports[0]",
        &[
            "[5]",
            "[[80, 80]]",
            "[null]",
            "[{internal: 80}]",
            "[{external: 80}]",
        ],
    );
    is_refused_at(
        "ports[0].internal",
        &[
            "[{internal: \"80\", external: 1}]",
            "[{internal: 80.0, external: 1}]",
            "[{internal: null, external: 1}]",
            "[{internal: 0, external: 1}]",
            "[{internal: 65536, external: 1}]",
            "[{internal: 080, external: 1}]",
        ],
    );
    is_refused_at(
        "ports[0].protocol",
        &["[{internal: 1, external: 1, protocol: sctp}]"],
    );
    is_refused_at(
        "ports[0].send_proxy",
        &[
            "[{internal: 1, external: 1, send_proxy: v1}]",
            "[{internal: 1, external: 1, send_proxy: true}]",
            "[{internal: 1, external: 1, protocol: udp, send_proxy: v2}]",
        ],
    );
    is_refused_at(
        "ports[1]",
        &["[{internal: 1, external: 1, send_proxy: v2}, {internal: 1, external: 2}]"],
    );
    is_refused_at("links", &["x", "null", "{a: 1}"]);
    is_refused_at(
        "links[0]",
        &[
            "[{remote_port: 1, alias: a}]",
            "[{local_port: 1, alias: a}]",
        ],
    );
    is_refused_at(
        "links[0].alias",
        &[
            "[{local_port: 1, remote_port: 1, alias: a b}]",
            "[{local_port: 1, remote_port: 1, alias: é}]",
            "[{local_port: 1, remote_port: 1, alias: a.b}]",
            "[{local_port: 1, remote_port: 1, alias: no}]",
        ],
    );
}

#[test]
fn volumes_and_limits_refuse_values_of_the_wrong_kind() {
    is_refused_at("volume", &["/data", "5", "true"]);
    is_refused_at(
        "volume.mountpoint",
        &[
            "{mountpoint: null}",
            "{mountpoint: 5}",
            "{mountpoint: \"\"}",
            "{mountpoint: data}",
            "{mountpoint: /é}",
            "{mountpoint: /}",
            "{mountpoint: /a/..}",
            "{mountpoint: \"/a\\0b\"}",
            "{mountpoint: \"/a\\nb\"}",
        ],
    );
    is_refused_at("volume.foo", &["{mountpoint: /d, foo: 1}"]);
    is_refused_at("volume.name", &["{mountpoint: /d, name: x}"]);
    is_refused_at(
        "volume.maximum_size",
        &[
            "{mountpoint: /d, maximum_size: 100}",
            "{mountpoint: /d, maximum_size: 1.5}",
            "{mountpoint: /d, maximum_size: \"0\"}",
            "{mountpoint: /d, maximum_size: 1GB}",
            "{mountpoint: /d, maximum_size: .5G}",
        ],
    );
    is_refused_at(
        "volume.dataset_id",
        &[
            "{mountpoint: /d, dataset_id: null}",
            "{mountpoint: /d, dataset_id: \"\"}",
        ],
    );
    is_refused_at(
        "mem_limit",
        &["0", "\"512\"", "512M", "true", "99999999999999999999"],
    );
    is_refused_at(
        "cpu_shares",
        &["0", "-1", "1.0", "true", "\"5\"", "null", "262145"],
    );
}

#[test]
fn restart_policies_and_environments_refuse_values_of_the_wrong_kind() {
    is_refused_at(
        "restart_policy.name",
        &[
            "{name: never-ever}",
            "{name: 5}",
            "{name: null}",
            "{name: no}",
        ],
    );
    is_refused_at("restart_policy.extra", &["{name: always, extra: 1}"]);
    is_refused_at(
        "restart_policy.maximum_retry_count",
        &[
            "{name: always, maximum_retry_count: 3}",
            "{name: on-failure, maximum_retry_count: 0}",
            "{name: on-failure, maximum_retry_count: \"3\"}",
            "{name: on-failure, maximum_retry_count: true}",
            "{name: on-failure, maximum_retry_count: null}",
        ],
    );
    is_refused_at("environment", &["[]", "5", "true"]);
    is_refused_at(
        "environment.A",
        &[
            "{A: null}",
            "{A: true}",
            "{A: 1.5}",
            "{A: {}}",
            "{A: yes}",
            "{A: 12:30:00}",
        ],
    );
    is_refused_at("environment.\"\"", &["{\"\": a}"]);
}

#[test]
fn rehomes_own_keys_are_checked_too() {
    is_refused_at("command", &["redis-server", "[]", "null"]);
    is_refused_at("command[1]", &["[sleep, 5]", "[a, no]"]);
    is_refused_at("healthcheck", &["5", "tcp", "null"]);
    is_refused_at(
        "healthcheck.http",
        &[
            "{http: 80}",
            "{http: health}",
            "{http: \"0/x\"}",
            "{http: \"80/a b\"}",
            "{http: \"+1/x\"}",
        ],
    );
    is_refused_at("healthcheck.tcp", &["{tcp: 0}", "{tcp: \"80\"}"]);
    is_refused_at(
        "healthcheck.command",
        &["{command: []}", "{command: x}", "{tcp: 80, command: [x]}"],
    );
    is_refused_at(
        "healthcheck.interval",
        &[
            "{interval: 5}",
            "{interval: 0s}",
            "{interval: soon}",
            "{interval: 9999days}",
        ],
    );
    is_refused_at(
        "healthcheck.retries",
        &["{retries: 0}", "{retries: 4294967296}"],
    );
    is_refused_at("stop_grace", &["10", "null", "[10s]"]);
    is_refused_at("stop_signal", &["9", "SIGFOO", "\"\"", "SIGRTMIN+99"]);
    is_refused_at("migration", &["5", "{downtime_budget: 9s, hard_cap: 3s}"]);
    is_refused_at("migration.on_stall", &["{on_stall: retry}"]);
    is_refused_at(
        "migration.bandwidth_limit",
        &["{bandwidth_limit: 100}", "{bandwidth_limit: 0M}"],
    );
    is_refused_at("migration.rounds", &["{rounds: 5}"]);
    is_refused_at("volumes", &["x", "null"]);
    is_refused_at(
        "volumes[0]",
        &["[{mountpoint: /a}, {name: b, mountpoint: /b}]"],
    );
    is_refused_at(
        "volumes[1]",
        &[
            "[{name: a, mountpoint: /a}, {name: a, mountpoint: /b}]",
            "[{name: a, mountpoint: /a}, {name: b, mountpoint: /b/../a/}]",
        ],
    );
    let (path, _) = refused(
        &native("    volume: {mountpoint: /a}\n    volumes: []\n"),
        None,
    );
    assert_eq!(path, "applications.db.volumes");
}

#[test]
fn rehomes_own_keys_show_in_the_meaning_when_they_are_set() {
    let body = "    ports: [{internal: 80, external: 81, protocol: http, send_proxy: v2}, {internal: 53, external: 53, protocol: udp}]
    volumes: [{name: a, mountpoint: /a//b/./c/, dataset_id: 7B7A3F1E-2F6C-4A57-9D0E-0C1F6F0D3B11}, {name: b, mountpoint: /b}]
    command: [a, b]
    healthcheck: {http: \"80/ready?x=1\", timeout: 500ms}
    stop_grace: 1m
    stop_signal: SIGRTMIN+3
    migration: {drain: 0s, max_rounds: 2, bandwidth_limit: 10M}
";
    let db = db(body);
    assert_eq!(
        db["ports"],
        json!([
            {"internal": 53, "external": 53, "protocol": "udp"},
            {"internal": 80, "external": 81, "protocol": "http", "send_proxy": "v2"},
        ])
    );
    assert_eq!(db["volume"], Value::Null);
    assert_eq!(
        db["volumes"][0],
        json!({"name": "a", "mountpoint": "/a/b/c", "maximum_size": null, "dataset_id": "7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11"})
    );
    assert_eq!(
        (&db["command"], &db["stop_grace"], &db["stop_signal"]),
        (&json!(["a", "b"]), &json!(60.0), &json!("SIGRTMIN+3"))
    );
    assert_eq!(
        db["healthcheck"],
        json!({"probe": {"http": {"port": 80, "path": "/ready?x=1"}}, "interval": 1.0, "timeout": 0.5, "retries": 30})
    );
    assert_eq!(
        db["migration"],
        json!({"drain": 0.0, "max_rounds": 2, "bandwidth_limit": 10 << 20})
    );
    let plain =
        db_keys("    stop_grace: 10s\n    healthcheck: {}\n    migration: {}\n    volumes: []\n");
    assert_eq!(plain.len(), 8, "{plain:?}");
}

#[test]
fn a_repeated_key_is_told_with_its_path() {
    let ports = "    ports:\n    - {internal: 1, external: 1}\n    - {internal: 1, internal: 2, external: 2}\n";
    let (path, _) = refused(&native(ports), None);
    assert_eq!(path, "applications.db.ports[1].internal");
}

fn db_keys(body: &str) -> Vec<String> {
    db(body).as_object().unwrap().keys().cloned().collect()
}

#[test]
fn the_native_top_level_is_checked() {
    for (text, path) in [
        ("version: null\napplications: {}\n", "version"),
        ("version: \"1\"\napplications: {}\n", "version"),
        ("version: true\napplications: {}\n", "version"),
        ("version: 1.5\napplications: {}\n", "version"),
        ("version: 1\napplications: []\n", "applications"),
        ("version: 1\napplications: text\n", "applications"),
        ("version: 1\napplications: {}\nextra: 1\n", "extra"),
        ("version: 1\napplications: {db: text}\n", "applications.db"),
        ("version: 1\napplications: {db: []}\n", "applications.db"),
        (
            "version: 1\napplications: {db: {image: [x]}}\n",
            "applications.db.image",
        ),
        (
            "version: 1\napplications: {db: {image: 5}}\n",
            "applications.db.image",
        ),
        (
            "version: 1\napplications: {db: {image: 'x:'}}\n",
            "applications.db.image",
        ),
        (
            "version: 1\napplications: {db: {image: x, foo: 1}}\n",
            "applications.db.foo",
        ),
        (
            "version: 1\napplications: {'a b': {image: x}}\n",
            "applications.\"a b\"",
        ),
        (
            "version: 1\napplications: {'': {image: x}}\n",
            "applications.\"\"",
        ),
        (
            "version: 1\napplications: {no: {image: x}}\n",
            "applications.no",
        ),
        (
            "version: 1\napplications: {null: {image: x}}\n",
            "applications.\"\"",
        ),
        (
            "version: 1\napplications: {[a]: {image: x}}\n",
            "applications.?",
        ),
        ("version: 1\nversion: 1\napplications: {}\n", "version"),
        ("web: {ports: []}\n", ""),
        ("web: 5\n", ""),
        ("", ""),
    ] {
        assert_eq!(refused(text, None).0, path, "{text}");
    }
    assert!(
        loaded(
            "version: 1\napplications: {image: {image: x}}\nx-mine: 1\n",
            None
        )
        .is_ok()
    );
}

#[test]
fn fig_files_are_checked() {
    for (body, path) in [
        ("image: x, ports: '80:80'", "db.ports"),
        ("image: x, ports: [22:22]", "db.ports[0]"),
        ("image: x, ports: ['80']", "db.ports[0]"),
        ("image: x, ports: ['53:53/udp']", "db.ports[0]"),
        ("image: x, ports: ['0:80']", "db.ports[0]"),
        ("image: x, ports: ['80:65536']", "db.ports[0]"),
        ("image: x, ports: ['-1:80']", "db.ports[0]"),
        ("image: x, links: [nobody]", "db.links[0]"),
        ("image: x, links: ['db:']", "db.links[0]"),
        ("image: x, volumes: /d", "db.volumes"),
        ("image: x, volumes: [5]", "db.volumes[0]"),
        ("image: x, volumes: []", "db.volumes"),
        ("image: x, volumes: [/a, /b]", "db.volumes[1]"),
        ("image: x, volumes: ['/host:/d']", "db.volumes[0]"),
        ("image: x, environment: {A: 5}", "db.environment.A"),
        ("image: x, environment: ''", "db.environment"),
        ("image: x, environment: ['']", "db.environment[0]"),
        ("image: x, mem_limit: 100m", "db.mem_limit"),
        ("image: x, cpu_shares: 5", "db.cpu_shares"),
        ("image: x, restart: always", "db.restart"),
        ("image: x, expose: ['80']", "db.expose"),
        ("image: 5", "db.image"),
    ] {
        assert_eq!(
            refused(&format!("db: {{{body}}}\n"), None).0,
            path,
            "{body}"
        );
    }
    let services = "applications: {image: x}\nservices: {image: y, links: [applications]}\n";
    assert_eq!(loaded(services, None).unwrap().format, Format::Fig);
    assert_eq!(refused("db: {image: x}\nweb: 5\n", None).0, "web");
    assert_eq!(refused("db: {image: x}\nweb:\n", None).0, "web");
    assert_eq!(
        refused(
            "a: {image: x, ports: ['80:80']}\nb: {image: x, ports: ['80:81']}\n",
            None
        )
        .0,
        "b.ports[0]"
    );
}

#[test]
fn a_fig_link_names_each_port_of_its_target_once() {
    let text = "db: {image: x, ports: ['2:1', '3:1']}\nweb: {image: y, links: [db, 'db:db']}\n";
    let loaded = loaded(text, None).unwrap();
    assert_eq!(
        meaning(&loaded)["applications"]["web"]["links"],
        json!([{"local_port": 1, "remote_port": 2, "alias": "db"}])
    );
}

#[test]
fn deployments_are_checked() {
    let application = native("");
    for (text, path) in [
        ("version: 1\n", ""),
        ("nodes: {h: []}\n", ""),
        ("version: 2\nnodes: {}\n", "version"),
        ("version: 1\nnodes: []\n", "nodes"),
        ("version: 1\nnodes: null\n", "nodes"),
        ("version: 1\nnodes: {h: []}\nmore: 1\n", "more"),
        ("version: 1\nnodes: {h: [nobody]}\n", "nodes.h[0]"),
        ("version: 1\nnodes: {h: [null]}\n", "nodes.h[0]"),
        ("version: 1\nnodes: {h: [[db]]}\n", "nodes.h[0]"),
        ("version: 1\nnodes: {h: [db], g: [db]}\n", "nodes.g[0]"),
        ("version: 1\nnodes: {'': []}\n", "nodes.\"\""),
        ("version: 1\nnodes: {5: []}\n", "nodes.5"),
        (
            "version: 1\nnodes: {10.0.0.256: []}\n",
            "nodes.\"10.0.0.256\"",
        ),
        (
            "version: 1\nnodes: {'10.0.0.1:80': []}\n",
            "nodes.\"10.0.0.1:80\"",
        ),
        (
            "version: 1\nnodes: {'fd00::1': [], 'FD00:0::1': []}\n",
            "nodes.\"FD00:0::1\"",
        ),
        ("version: 1\nnodes: {Host: [], host: []}\n", "nodes.host"),
        ("version: 1\nnodes: !!python/tuple []\n", ""),
    ] {
        assert_eq!(refused(&application, Some(text)).0, path, "{text}");
    }
    let text = "version: 1.0\nnodes: {'fd00::1': [db], db1.example.org: [], 10.0.0.1: []}\n";
    let loaded = loaded(&application, Some(text)).unwrap();
    assert_eq!(
        meaning(&loaded)["nodes"],
        json!({"10.0.0.1": [], "db1.example.org": [], "fd00::1": ["db"]})
    );
}

#[test]
fn what_clashes_across_applications_is_told_at_the_second_place() {
    let two = |a: &str, b: &str| {
        format!("version: 1\napplications:\n  a: {{image: x, {a}}}\n  b: {{image: x, {b}}}\n")
    };
    let id = "volume: {mountpoint: /d, dataset_id: 7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11}";
    let shouted = "volume: {mountpoint: /e, dataset_id: 7B7A3F1E-2F6C-4A57-9D0E-0C1F6F0D3B11}";
    for (a, b, path) in [
        (
            "ports: [{internal: 1, external: 80}]",
            "ports: [{internal: 1, external: 80}]",
            "applications.b.ports[0]",
        ),
        (
            "ports: [{internal: 1, external: 80}]",
            "ports: [{internal: 2, external: 80, protocol: http}]",
            "applications.b.ports[0]",
        ),
        (id, shouted, "applications.b.volume"),
        (
            "links: [{local_port: 1, remote_port: 2, alias: a-b}, {local_port: 1, remote_port: 3, alias: A_b}]",
            "ports: [{internal: 1, external: 2}, {internal: 1, external: 3}]",
            "applications.a.links[1]",
        ),
        (
            "links: [{local_port: 1, remote_port: 2, alias: a}, {local_port: 1, remote_port: 3, alias: a}]",
            "ports: [{internal: 1, external: 2}, {internal: 1, external: 3}]",
            "applications.a.links[1]",
        ),
    ] {
        assert_eq!(refused(&two(a, b), None).0, path, "{a} {b}");
    }
    let transports = two(
        "ports: [{internal: 1, external: 53}]",
        "ports: [{internal: 1, external: 53, protocol: udp}]",
    );
    assert!(loaded(&transports, None).is_ok());
    let twice = two(
        "links: [{local_port: 1, remote_port: 2, alias: a}, {local_port: 1, remote_port: 2, alias: a}]",
        "ports: [{internal: 1, external: 2}]",
    );
    assert_eq!(
        meaning(&loaded(&twice, None).unwrap())["applications"]["a"]["links"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn what_looks_like_a_mistake_is_a_warning() {
    let warnings = |application: &str, deployment: Option<&str>| -> Vec<(usize, String)> {
        let loaded = loaded(application, deployment).unwrap();
        loaded
            .warnings
            .into_iter()
            .map(|w| (w.line, w.path))
            .collect()
    };
    let link = native("    links:\n    - {local_port: 1, remote_port: 2, alias: a}\n");
    assert_eq!(
        warnings(&link, None),
        [(6, "applications.db.links[0]".to_owned())]
    );
    let daemons = native("    ports: [{internal: 1, external: 7421}]\n");
    assert_eq!(
        warnings(&daemons, None),
        [(5, "applications.db.ports[0]".to_owned())]
    );
    let deaf = native(
        "    ports: [{internal: 80, external: 80, send_proxy: v2}]\n    healthcheck: {http: 80/}\n",
    );
    assert_eq!(
        warnings(&deaf, None),
        [(5, "applications.db.ports[0]".to_owned())]
    );
    let hears = native(
        "    ports: [{internal: 80, external: 80, send_proxy: v2}]\n    healthcheck: {tcp: 80}\n",
    );
    assert_eq!(warnings(&hears, None), []);
    let idle = "version: 1\nnodes: {h: []}\n";
    assert_eq!(
        warnings(&native(""), Some(idle)),
        [(3, "applications.db".to_owned())]
    );
    assert_eq!(
        warnings(&native(""), Some("version: 1\nnodes: {h: [db]}\n")),
        []
    );
}

#[test]
fn all_problems_of_both_files_come_in_order() {
    let application = "version: 2\napplications:\n  db:\n    image: ''\n    ports: [{internal: 0, external: 80}]\n  web:\n    image: x\n    ports: [{internal: 1, external: 80}]\n    foo: 1\n    foo: 2\n";
    let deployment = "version: 1\nnodes:\n  h: [nobody, db]\n  g: [db]\n  h: []\n";
    let problems = loaded(application, Some(deployment)).unwrap_err();
    let places: Vec<(&str, usize)> = problems.iter().map(|p| (p.file.as_str(), p.line)).collect();
    assert_eq!(
        places,
        [
            ("a.yml", 1),
            ("a.yml", 4),
            ("a.yml", 5),
            ("a.yml", 9),
            ("a.yml", 10),
            ("d.yml", 3),
            ("d.yml", 4),
            ("d.yml", 5)
        ]
    );
    // An application file that cannot be read says nothing about the names in the other.
    let unreadable = loaded("a: [", Some("version: 1\nnodes: {h: [db]}\n")).unwrap_err();
    assert_eq!(unreadable.len(), 1, "{unreadable:#?}");
}
