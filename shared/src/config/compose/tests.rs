use serde_json::{Value, json};

use crate::config::{Problem, Source, load, meaning};

fn meaning_of(text: &str) -> Value {
    let loaded =
        load(&Source::new("c.yml", text), None).unwrap_or_else(|p| panic!("{text}: {p:#?}"));
    assert_eq!(loaded.format.as_str(), "compose");
    meaning::meaning(&loaded)
}

fn service(body: &str) -> Value {
    meaning_of(&format!("services:\n  web:\n    image: acme/web\n{body}"))["applications"]["web"]
        .clone()
}

fn problems(text: &str) -> Vec<Problem> {
    load(&Source::new("c.yml", text), None).expect_err(text)
}

/// The line of the only problem and what it says.
fn refused(body: &str) -> (usize, String) {
    let text = format!("services:\n  web:\n    image: acme/web\n{body}");
    let found = problems(&text);
    assert_eq!(found.len(), 1, "{text}: {found:#?}");
    (found[0].line, found[0].to_string())
}

#[test]
fn a_small_service_means_what_the_native_format_means() {
    assert_eq!(
        meaning_of("services: {web: {image: 'acme/web:1', ports: ['8080:80']}}"),
        json!({
            "format": "compose",
            "warnings": [],
            "applications": {"web": {
                "image": {"repository": "acme/web", "tag": "1"},
                "ports": [{"internal": 80, "external": 8080}],
                "links": [], "environment": {}, "volume": null,
                "mem_limit": null, "cpu_shares": null, "restart_policy": {"name": "never"},
            }},
        })
    );
}

/// A file with every supported key.
const FULL: &str = "\
version: '3.8'
name: shop
x-note: anything
services:
  db:
    image: postgres:17
    environment: {POSTGRES_PASSWORD: s$$cret, PORT: 5432, DEBUG: true}
    ports: ['5432:5432']
    volumes: ['pgdata:/var/lib/postgresql/data']
    mem_limit: 512m
    cpu_shares: 512
    restart: on-failure:3
    user: 999:999
    working_dir: /srv
    hostname: db
    entrypoint: [docker-entrypoint.sh]
    command: postgres -c 'max_connections=50'
    healthcheck: {test: [CMD, pg_isready], interval: 5s, timeout: 2s, retries: 3, start_period: 11s}
    stop_grace_period: 1m30s
    stop_signal: INT
  web:
    image: acme/web
    links: ['db:database']
    depends_on: {db: {condition: service_healthy}}
    restart: unless-stopped
volumes:
  pgdata:
";

#[test]
fn every_supported_key_is_read() {
    let got = meaning_of(FULL);
    let db = &got["applications"]["db"];
    assert_eq!(
        db["environment"],
        json!({"POSTGRES_PASSWORD": "s$cret", "PORT": "5432", "DEBUG": "true"})
    );
    assert_eq!(db["volume"]["mountpoint"], "/var/lib/postgresql/data");
    assert_eq!(db["volumes"][0]["name"], "pgdata");
    assert_eq!(
        (&db["mem_limit"], &db["cpu_shares"]),
        (&json!(512 << 20), &json!(512))
    );
    assert_eq!(
        db["restart_policy"],
        json!({"name": "on-failure", "maximum_retry_count": 3})
    );
    assert_eq!(
        (&db["user"], &db["working_dir"], &db["hostname"]),
        (&json!("999:999"), &json!("/srv"), &json!("db"))
    );
    assert_eq!(db["entrypoint"], json!(["docker-entrypoint.sh"]));
    assert_eq!(
        db["command"],
        json!(["postgres", "-c", "max_connections=50"])
    );
    // The start period of 11 s is three more tries of 5 s.
    assert_eq!(
        db["healthcheck"],
        json!({"probe": {"command": ["pg_isready"]}, "interval": 5.0, "timeout": 2.0, "retries": 6})
    );
    assert_eq!(
        (&db["stop_grace"], &db["stop_signal"]),
        (&json!(90.0), &json!("SIGINT"))
    );
    let web = &got["applications"]["web"];
    assert_eq!(
        web["links"],
        json!([{"alias": "database", "local_port": 5432, "remote_port": 5432}])
    );
    assert_eq!(web["restart_policy"], json!({"name": "always"}));
}

#[test]
fn ports_are_written_short_or_long() {
    let web = service(
        "    ports:\n    - '8080:80'\n    - 53:53/udp\n    - {target: 443, published: '8443', mode: ingress}\n\
         \x20   - {target: 81, published: 81, protocol: tcp, app_protocol: http}\n",
    );
    assert_eq!(
        web["ports"],
        json!([
            {"internal": 53, "external": 53, "protocol": "udp"},
            {"internal": 80, "external": 8080},
            {"internal": 81, "external": 81, "protocol": "http"},
            {"internal": 443, "external": 8443},
        ])
    );
    for (port, about) in [
        ("80", "external port"),
        ("'80'", "external port"),
        ("'127.0.0.1:8080:80'", "address"),
        ("'[::1]:8080:80'", "address"),
        ("'8000-8010:8000-8010'", "range"),
        ("'8080:80/sctp'", "protocol"),
        ("'8080:x'", "integer"),
        ("'0:80'", "out of range"),
        ("'8080:65536'", "out of range"),
        ("{target: 80}", "published"),
        ("{target: 80, published: 80, host_ip: 127.0.0.1}", "host_ip"),
        ("[80]", "text"),
    ] {
        let (line, said) = refused(&format!("    ports: [\n      {port}]\n"));
        assert!(line == 5 && said.contains(about), "{port}: {said}");
    }
}

#[test]
fn an_unquoted_port_that_other_readers_take_for_a_number_gets_a_warning() {
    let got = meaning_of("services:\n  web:\n    image: x\n    ports: [22:22]\n");
    assert_eq!(
        got["applications"]["web"]["ports"],
        json!([{"internal": 22, "external": 22}])
    );
    assert_eq!(got["warnings"][0]["line"], 4);
}

#[test]
fn volumes_move_with_their_service() {
    let web = service("    volumes: [/data, {type: volume, target: /var/www}]\n");
    assert_eq!(web["volume"], Value::Null);
    let names: Vec<_> = web["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].clone())
        .collect();
    assert_eq!(names, ["data", "var-www"]);
    let one = service("    volumes: [/data/]\n");
    assert_eq!(
        one["volume"],
        json!({"mountpoint": "/data", "maximum_size": null, "dataset_id": null})
    );
    assert_eq!(one.get("volumes"), None);
    for (volume, about) in [
        ("'/srv/x:/data'", "directory of the host"),
        ("'./x:/data'", "directory of the host"),
        ("'~/x:/data'", "directory of the host"),
        ("'nowhere:/data'", "not declared"),
        ("'data:/data:ro'", "not supported"),
        ("data", "absolute"),
        ("'a:b:c:d'", "not a volume"),
        ("{type: bind, source: /x, target: /data}", "only volumes"),
        (
            "{type: volume, target: /data, read_only: true}",
            "read-only",
        ),
        ("{type: volume}", "target"),
        (
            "{type: volume, target: /data, volume: {nocopy: true}}",
            "unsupported",
        ),
    ] {
        let (line, said) = refused(&format!(
            "    volumes: [\n      {volume}]\nvolumes: {{data: {{driver: local}}}}\n"
        ));
        assert!(line == 5 && said.contains(about), "{volume}: {said}");
    }
    let shared = "services:\n  a: {image: x, volumes: ['d:/d']}\n  b: {image: x, volumes: ['d:/d']}\nvolumes: {d: }\n";
    assert!(
        problems(shared)[0]
            .message
            .contains("already used in line 2")
    );
}

#[test]
fn known_keys_are_refused_by_name_and_unknown_ones_as_unknown() {
    for (body, about) in [
        ("    build: .\n", "unsupported Compose key 'build'"),
        (
            "    deploy: {replicas: 3}\n",
            "unsupported Compose key 'deploy'",
        ),
        ("    networks: [a]\n", "unsupported Compose key 'networks'"),
        (
            "    privileged: true\n",
            "unsupported Compose key 'privileged'",
        ),
        ("    foo: bar\n", "unrecognised key 'foo'"),
        ("    enviroment: {}\n", "did you mean 'environment'?"),
        (
            "networks: {a: }\n",
            "unsupported Compose section 'networks'",
        ),
        ("servces: {}\n", "did you mean 'services'?"),
    ] {
        let (line, said) = refused(body);
        assert!(line == 4 && said.contains(about), "{said}");
    }
    let build = problems("services:\n  web:\n    build: .\n");
    assert_eq!(build.len(), 1, "{build:#?}");
    assert!(
        problems("services:\n  web: {}\n")[0]
            .message
            .contains("image")
    );
    assert!(
        problems("services:\n  web:\n")[0]
            .message
            .contains("mapping")
    );
    assert!(problems("services: [web]\n")[0].message.contains("mapping"));
    assert_eq!(service("    x-mine: {a: 1}\n")["ports"], json!([]));
}

#[test]
fn variables_are_not_silently_kept_as_text() {
    for value in ["${TAG}", "$TAG", "a$b", "${TAG:-1}", "$"] {
        let (line, said) = refused(&format!("    environment: {{\n      A: '{value}'}}\n"));
        assert!(
            line == 5 && said.contains("not substituted"),
            "{value}: {said}"
        );
    }
    assert_eq!(
        service("    environment: {A: 'a$$b$$$$'}\n")["environment"]["A"],
        "a$b$$"
    );
}

#[test]
fn environments_may_be_lists() {
    let text = "services:\n  web:\n    image: x\n    environment: [A=b=c, D]\n";
    let got = meaning_of(text);
    assert_eq!(
        got["applications"]["web"]["environment"],
        json!({"A": "b=c", "D": ""})
    );
    assert!(
        got["warnings"][0]["message"]
            .as_str()
            .unwrap()
            .contains("empty")
    );
    for environment in ["A=b", "[5]", "{A: [b]}", "[A=1, A=2]", "['=x']", "''"] {
        refused(&format!("    environment: {environment}\n"));
    }
}

#[test]
fn restart_policies_are_composes() {
    for (restart, want) in [
        ("no", json!({"name": "never"})),
        ("\"no\"", json!({"name": "never"})),
        ("always", json!({"name": "always"})),
        ("unless-stopped", json!({"name": "always"})),
        (
            "on-failure",
            json!({"name": "on-failure", "maximum_retry_count": null}),
        ),
        (
            "on-failure:5",
            json!({"name": "on-failure", "maximum_retry_count": 5}),
        ),
    ] {
        assert_eq!(
            service(&format!("    restart: {restart}\n"))["restart_policy"],
            want
        );
    }
    for restart in [
        "never",
        "Always",
        "on-failure:0",
        "on-failure:-1",
        "on-failure:x",
        "always:3",
        "true",
        "{name: always}",
        "",
    ] {
        refused(&format!("    restart: {restart}\n"));
    }
}

#[test]
fn healthchecks_are_composes() {
    let probe = |test: &str| {
        service(&format!(
            "    healthcheck: {{test: {test}, interval: 3s}}\n"
        ))["healthcheck"]["probe"]
            .clone()
    };
    assert_eq!(probe("[CMD, a, b]"), json!({"command": ["a", "b"]}));
    assert_eq!(
        probe("[CMD-SHELL, a && b]"),
        json!({"command": ["/bin/sh", "-c", "a && b"]})
    );
    assert_eq!(
        probe("a && b"),
        json!({"command": ["/bin/sh", "-c", "a && b"]})
    );
    assert_eq!(probe("[NONE]"), Value::Null);
    assert_eq!(
        service("    healthcheck: {disable: true}\n").get("healthcheck"),
        None
    );
    for check in [
        "[]",
        "{test: [a, b]}",
        "{test: [CMD]}",
        "{test: ''}",
        "{interval: 5}",
        "{retries: 0}",
        "{disable: 1}",
        "{start_interval: 1s}",
        "{foo: 1}",
    ] {
        refused(&format!("    healthcheck: {check}\n"));
    }
}

#[test]
fn links_and_dependencies_name_services() {
    for body in [
        "    links: [nobody]\n",
        "    links: ['web:a:b']\n",
        "    links: ['web:']\n",
        "    depends_on: [nobody]\n",
        "    depends_on: [web]\n",
        "    depends_on: {nobody: {condition: x}}\n",
    ] {
        let (line, _) = refused(body);
        assert_eq!(line, 4, "{body}");
    }
    let got = meaning_of("services:\n  web: {image: x, links: [db]}\n  db: {image: y}\n");
    assert!(
        got["warnings"][0]["message"]
            .as_str()
            .unwrap()
            .contains("no ports")
    );
}

#[test]
fn small_values_are_checked() {
    for body in [
        "    mem_limit: 512q\n",
        "    mem_limit: 0\n",
        "    mem_limit: '0'\n",
        "    cpu_shares: x\n",
        "    command: 'a \"b'\n",
        "    command: [sleep, 5]\n",
        "    user: ''\n",
        "    user: [a]\n",
        "    stop_signal: SIGFOO\n",
        "    stop_grace_period: 10\n",
        "    hostname: 5\n",
        "    image: x\n",
    ] {
        refused(body);
    }
    for (limit, want) in [
        ("1gb", 1_u64 << 30),
        ("512M", 512 << 20),
        ("64b", 64),
        ("1000", 1000),
        ("2GiB", 2 << 30),
    ] {
        assert_eq!(
            service(&format!("    mem_limit: {limit}\n"))["mem_limit"],
            want,
            "{limit}"
        );
    }
    assert_eq!(service("    command: []\n")["command"], json!([]));
    assert_eq!(
        service("    command: [redis-server, --appendonly, yes]\n")["command"][2],
        "yes"
    );
}
