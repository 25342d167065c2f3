//! When an application counts as healthy: the native form and Compose's.

use std::time::Duration;

use super::model::{Healthcheck, Probe};
use super::quantity::{duration, positive_duration};
use super::read::{At, Fields, Report};
use super::yaml::Value;

const KEYS: [&str; 6] = ["tcp", "http", "command", "interval", "timeout", "retries"];
const COMPOSE_KEYS: [&str; 6] = [
    "test",
    "interval",
    "timeout",
    "retries",
    "start_period",
    "disable",
];

/// The native `healthcheck`.
pub(super) fn native(at: &At<'_>, report: &mut Report) -> Healthcheck {
    let rule = "a mapping, for example {tcp: 5432} or {http: \"8080/health\"}";
    let Some(mut fields) = at.mapping(report, rule) else {
        return Healthcheck::default();
    };
    let probes: Vec<_> = ["tcp", "http", "command"]
        .into_iter()
        .filter_map(|key| fields.take(key).map(|at| (key, at)))
        .collect();
    let mut probe = None;
    for (index, (key, at)) in probes.iter().enumerate() {
        if index > 0 {
            report.problem(
                &at.place,
                "a healthcheck has one probe",
                "keep one of tcp, http, command",
            );
        }
        probe = match *key {
            "tcp" => at.port(report, "the port").map(Probe::Tcp),
            "http" => http(at, report),
            _ => at
                .texts(report, "a list of words, for example [pg_isready, -q]")
                .map(Probe::Command),
        };
    }
    let check = Healthcheck {
        probe,
        ..timing(&mut fields, report)
    };
    fields.finish(report, &KEYS);
    check
}

fn timing(fields: &mut Fields<'_>, report: &mut Report) -> Healthcheck {
    let default = Healthcheck::default();
    let mut time = |key: &str, default: Duration| {
        fields
            .take(key)
            .and_then(|v| positive_duration(&v, report))
            .unwrap_or(default)
    };
    let (interval, timeout) = (
        time("interval", default.interval),
        time("timeout", default.timeout),
    );
    let retries = fields
        .take("retries")
        .and_then(|v| v.count(report, 1, "retries"))
        .unwrap_or(default.retries);
    Healthcheck {
        probe: None,
        interval,
        timeout,
        retries,
    }
}

/// `PORT/path`.
fn http(at: &At<'_>, report: &mut Report) -> Option<Probe> {
    let text = at.text(
        report,
        "a text with port and path, for example \"8080/health\"",
    )?;
    let parsed = text.split_once('/').and_then(|(port, path)| {
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port: u16 = port.parse().ok().filter(|n| *n > 0 && digits)?;
        let printable = path.bytes().all(|b| b.is_ascii_graphic());
        printable.then(|| Probe::Http {
            port,
            path: format!("/{path}"),
        })
    });
    if parsed.is_none() {
        report.problem(
            &at.place,
            format!("{text:?} is not a port and a path"),
            "write for example \"8080/health\", or \"8080/\" for the root",
        );
    }
    parsed
}

/// Compose's `healthcheck`.
///
/// `start_period` is given as further retries, which is what it means: failures that do not count
/// yet. A disabled check leaves Rehome's own one, a connect to the first port, because a move must
/// know when the application serves.
pub(super) fn compose(at: &At<'_>, report: &mut Report) -> Healthcheck {
    let rule = "a mapping, for example {test: [CMD, pg_isready]}";
    let Some(mut fields) = at.mapping(report, rule) else {
        return Healthcheck::default();
    };
    let probe = fields
        .take("test")
        .and_then(|test| compose_test(&test, report));
    let timing = timing(&mut fields, report);
    let start = fields
        .take("start_period")
        .and_then(|v| duration(&v, report))
        .unwrap_or_default();
    let disable = fields.take("disable");
    let disabled = disable
        .as_ref()
        .is_some_and(|at| *at.value == Value::Bool(true));
    if let Some(at) = disable.filter(|at| !matches!(at.value, Value::Bool(_))) {
        at.wrong(report, "true or false");
    }
    fields.refuse(
        report,
        "key",
        &[(
            "start_interval",
            "remove it; 'interval' holds from the start",
        )],
    );
    fields.finish(report, &COMPOSE_KEYS);
    let extra = start.as_nanos().div_ceil(timing.interval.as_nanos().max(1));
    Healthcheck {
        probe: if disabled { None } else { probe },
        retries: timing
            .retries
            .saturating_add(u32::try_from(extra).unwrap_or(u32::MAX)),
        ..timing
    }
}

fn compose_test(at: &At<'_>, report: &mut Report) -> Option<Probe> {
    let shell = |script: &str| {
        Probe::Command(vec![
            "/bin/sh".to_owned(),
            "-c".to_owned(),
            script.to_owned(),
        ])
    };
    let cure = "write a text for the shell, or a list that begins with CMD, CMD-SHELL or NONE";
    if let Value::Text(script) = at.value {
        if script.trim().is_empty() {
            report.problem(&at.place, "the test is empty", cure);
            return None;
        }
        return at.text(report, "a text").map(shell);
    }
    let words = at.texts(report, "a text or a list of texts")?;
    let (kind, rest) = words.split_first()?;
    match (kind.as_str(), rest) {
        ("NONE", []) => None,
        ("CMD", [_, ..]) => Some(Probe::Command(rest.to_vec())),
        ("CMD-SHELL", [script]) => Some(shell(script)),
        _ => {
            report.problem(&at.place, format!("unknown form of test {words:?}"), cure);
            None
        }
    }
}
