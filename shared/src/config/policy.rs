//! How an application moves, stops, and comes back when it exits by itself: the keys
//! `migration`, `stop_signal` and `restart_policy`, and Compose's `restart`.

use super::model::{MigrationPolicy, OnStall, RestartPolicy};
use super::quantity::{duration, positive_duration, size};
use super::read::{At, Report};

const MIGRATION_KEYS: [&str; 8] = [
    "downtime_budget",
    "hard_cap",
    "max_rounds",
    "drain",
    "park_timeout",
    "park_limit",
    "bandwidth_limit",
    "on_stall",
];

/// The signals that a file may name, besides `SIGRTMIN+n`.
const SIGNALS: [&str; 19] = [
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGABRT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGPIPE",
    "SIGALRM", "SIGTERM", "SIGCONT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH",
    "SIGIO", "SIGPWR", "SIGXCPU",
];

/// The key `migration`, in an application and in migrated.yml.
pub(super) fn migration(at: &At<'_>, report: &mut Report) -> MigrationPolicy {
    let Some(mut fields) = at.mapping(report, "a mapping of limits for moves") else {
        return MigrationPolicy::default();
    };
    let policy = MigrationPolicy {
        downtime_budget: fields
            .take("downtime_budget")
            .and_then(|v| positive_duration(&v, report)),
        hard_cap: fields
            .take("hard_cap")
            .and_then(|v| positive_duration(&v, report)),
        max_rounds: fields
            .take("max_rounds")
            .and_then(|v| v.count(report, 1, "max_rounds")),
        drain: fields.take("drain").and_then(|v| duration(&v, report)),
        park_timeout: fields
            .take("park_timeout")
            .and_then(|v| positive_duration(&v, report)),
        park_limit: fields
            .take("park_limit")
            .and_then(|v| v.count(report, 1, "park_limit")),
        bandwidth_limit: fields
            .take("bandwidth_limit")
            .and_then(|v| size(&v, report, "bandwidth_limit")),
        on_stall: fields.take("on_stall").and_then(|v| {
            let words = [
                ("cutover", OnStall::Cutover),
                ("throttle", OnStall::Throttle),
                ("wait", OnStall::Wait),
                ("abort", OnStall::Abort),
            ];
            v.word(report, "action", &words)
        }),
    };
    if let (Some(budget), Some(cap)) = (policy.downtime_budget, policy.hard_cap)
        && budget > cap
    {
        report.problem(
            &fields.place,
            "downtime_budget is larger than hard_cap",
            "make hard_cap at least as large: it is the window that is never passed",
        );
    }
    fields.finish(report, &MIGRATION_KEYS);
    policy
}

/// The key `restart_policy`.
pub(super) fn restart_policy(at: &At<'_>, report: &mut Report) -> RestartPolicy {
    let rule = "a mapping with a 'name', for example {name: always}";
    let Some(mut fields) = at.mapping(report, rule) else {
        return RestartPolicy::Never;
    };
    let count = fields.take("maximum_retry_count");
    let name = fields.require(
        report,
        "name",
        "a restart_policy needs a 'name': never, always or on-failure",
    );
    fields.finish(report, &["name", "maximum_retry_count"]);
    let on_failure = RestartPolicy::OnFailure {
        maximum_retry_count: None,
    };
    let words = [
        ("never", RestartPolicy::Never),
        ("always", RestartPolicy::Always),
        ("on-failure", on_failure),
    ];
    let Some(policy) = name.and_then(|n| n.word(report, "restart policy name", &words)) else {
        return RestartPolicy::Never;
    };
    let Some(count) = count else { return policy };
    match policy {
        RestartPolicy::OnFailure { .. } => RestartPolicy::OnFailure {
            maximum_retry_count: count.count(report, 1, "maximum_retry_count"),
        },
        RestartPolicy::Never | RestartPolicy::Always => {
            report.problem(
                &count.place,
                "maximum_retry_count is not allowed for never and always: these policies have no arguments",
                "remove it, or write 'name: on-failure'",
            );
            policy
        }
    }
}

/// Compose's `restart`: `no`, `always`, `unless-stopped`, `on-failure[:N]`.
///
/// An application that was stopped on purpose is one that the deployment does not place, so
/// `unless-stopped` and `always` mean the same here.
pub(super) fn compose_restart(at: &At<'_>, report: &mut Report) -> RestartPolicy {
    let rule = "\"no\", always, unless-stopped, on-failure or on-failure:N";
    let Some(text) = at.text(report, rule) else {
        return RestartPolicy::Never;
    };
    let policy = match text.split_once(':') {
        None => match text {
            "no" => Some(RestartPolicy::Never),
            "always" | "unless-stopped" => Some(RestartPolicy::Always),
            "on-failure" => Some(RestartPolicy::OnFailure {
                maximum_retry_count: None,
            }),
            _ => None,
        },
        Some(("on-failure", count)) => {
            let digits = count.bytes().all(|b| b.is_ascii_digit());
            count
                .parse()
                .ok()
                .filter(|n| *n > 0 && digits)
                .map(|n: u32| RestartPolicy::OnFailure {
                    maximum_retry_count: Some(n),
                })
        }
        Some(_) => None,
    };
    policy.unwrap_or_else(|| {
        report.problem(
            &at.place,
            format!("unknown restart policy {text:?}"),
            format!("write {rule}"),
        );
        RestartPolicy::Never
    })
}

/// The key `stop_signal`: `SIGINT` or `INT`, as Docker takes it.
pub(super) fn stop_signal(at: &At<'_>, report: &mut Report) -> Option<String> {
    let text = at.text(report, "the name of a signal, for example SIGINT")?;
    let name = if text.starts_with("SIG") {
        text.to_owned()
    } else {
        format!("SIG{text}")
    };
    let real_time = name
        .strip_prefix("SIGRTMIN+")
        .is_some_and(|n| n.len() <= 2 && n.parse::<u8>().is_ok_and(|n| n <= 30));
    if real_time || SIGNALS.contains(&name.as_str()) {
        return Some(name);
    }
    report.problem(
        &at.place,
        format!("unknown signal {text:?}"),
        "write the name of a signal that stops a program, for example SIGTERM, SIGINT or SIGQUIT",
    );
    None
}
