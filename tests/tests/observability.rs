//! The alert rules and the dashboard: read by the programs that will read them, and about
//! metrics that the daemons have.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rehome_tests::project;
use serde_json::Value;

const RULES: &str = "config/prometheus/rules.yml";
const RULE_TESTS: &str = "config/prometheus/rules_test.yml";
const DASHBOARD: &str = "config/grafana/dashboard.json";

/// Every metric that Rehome promises, as Prometheus shows it.
const METRICS: [&str; 24] = [
    "rehome_applications",
    "rehome_build_info",
    "rehome_config_reloads_total",
    "rehome_migration_bytes_total",
    "rehome_migration_phase_seconds",
    "rehome_migration_raw_bytes_total",
    "rehome_migration_stream_resumes_total",
    "rehome_migration_window_error_seconds",
    "rehome_migration_window_seconds",
    "rehome_migrations_total",
    "rehome_proxy_bytes_total",
    "rehome_proxy_connect_seconds",
    "rehome_proxy_connections_active",
    "rehome_proxy_connections_parked",
    "rehome_proxy_connections_total",
    "rehome_proxy_fast_path",
    "rehome_proxy_fast_path_cut_total",
    "rehome_proxy_fast_path_failures_total",
    "rehome_proxy_fast_path_given_up_total",
    "rehome_proxy_fast_path_repairs_total",
    "rehome_proxy_fast_path_routes",
    "rehome_proxy_park_seconds",
    "rehome_route_info",
    "rehome_volume_bytes",
];

/// `promtool` of this machine, or the one that `make deps-test` unpacks.
fn promtool(arguments: &[&str]) -> anyhow::Result<()> {
    let unpacked = project()?.join("target/tools/usr/bin/promtool");
    let program = if unpacked.is_file() {
        unpacked
    } else {
        PathBuf::from("promtool")
    };
    let output = Command::new(program)
        .args(arguments)
        .current_dir(project()?)
        .output()
        .context("cannot run promtool: `make deps-test` brings it")?;
    ensure!(
        output.status.success(),
        "promtool {}: {}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn prometheus_accepts_the_alert_rules() -> anyhow::Result<()> {
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", RULES])
}

#[test]
fn each_alert_fires_when_it_should_and_not_before() -> anyhow::Result<()> {
    promtool(&["test", "rules", RULE_TESTS])?;
    let rules = std::fs::read_to_string(project()?.join(RULES))?;
    let tests = std::fs::read_to_string(project()?.join(RULE_TESTS))?;
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    ensure!(!alerts.is_empty(), "there are no alerts");
    for alert in alerts {
        ensure!(
            tests.contains(&format!("alertname: {alert}\n")),
            "{alert} is never tested"
        );
    }
    Ok(())
}

#[test]
fn rules_and_dashboard_speak_of_metrics_that_exist() -> anyhow::Result<()> {
    for file in [RULES, DASHBOARD] {
        let text = std::fs::read_to_string(project()?.join(file))?;
        let names = metrics_in(&text);
        ensure!(!names.is_empty(), "{file} speaks of no metric");
        for name in names {
            let exists = METRICS.iter().any(|metric| {
                name.strip_prefix(metric)
                    .is_some_and(|rest| matches!(rest, "" | "_bucket" | "_sum" | "_count"))
            });
            ensure!(exists, "{file}: there is no metric {name}");
        }
    }
    Ok(())
}

/// A promise is kept by a daemon that registers the metric; the prefix and what the format adds
/// to a counter's name are not in the source.
#[test]
fn every_metric_that_is_promised_is_registered() -> anyhow::Result<()> {
    let code = ["proxyd/src", "migrated/src", "shared/runtime/src"]
        .into_iter()
        .map(|directory| sources(&project()?.join(directory)))
        .collect::<anyhow::Result<String>>()?;
    for metric in METRICS {
        let name = metric.strip_prefix("rehome_").context("a prefix")?;
        let name = name.strip_suffix("_total").unwrap_or(name);
        ensure!(
            code.contains(&format!("\"{name}\"")),
            "no daemon registers {metric}"
        );
    }
    Ok(())
}

/// The text of the source files below a directory, without those that hold only tests.
fn sources(directory: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            text.push_str(&sources(&path)?);
        } else if !path.ends_with("tests.rs") {
            text.push_str(&std::fs::read_to_string(&path)?);
        }
    }
    Ok(text)
}

fn metrics_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("rehome_"))
        .collect()
}

#[test]
fn every_panel_of_the_dashboard_asks_for_something() -> anyhow::Result<()> {
    let text = std::fs::read_to_string(project()?.join(DASHBOARD))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    ensure!(!panels.is_empty(), "there are no panels");
    let mut ids = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().context("a panel has no title")?;
        ensure!(
            ids.insert(panel["id"].as_u64()),
            "{title}: its id is not its own"
        );
        let targets = panel["targets"].as_array().context("targets")?;
        ensure!(!targets.is_empty(), "{title} asks for nothing");
        for target in targets {
            let query = target["expr"].as_str().unwrap_or_default();
            ensure!(
                !metrics_in(query).is_empty(),
                "{title}: {query:?} names no metric"
            );
        }
        let place = &panel["gridPos"];
        for edge in ["x", "y", "w", "h"] {
            ensure!(place[edge].is_u64(), "{title} has no place");
        }
    }
    Ok(())
}
