//! A migration while it runs (one line) and afterwards (a table of its phases).

use rehome_shared::api::cluster::{Migration, MigrationNow, PHASES, Round};
use rehome_shared::units::Bytes;

use super::{NOTHING, count, seconds, table};

/// So many rounds are listed one by one; a drain may add many.
const ROUNDS: usize = 8;

/// `db 10.0.0.1 → 10.0.0.2`.
pub(crate) fn title(migration: &Migration) -> String {
    format!(
        "{} {} → {}",
        migration.application, migration.from, migration.to
    )
}

/// What a running migration does now: phase, round, bytes, rate, how hard the application is held
/// back, predicted window.
pub(crate) fn now(now: &MigrationNow, throttled: Option<u8>) -> String {
    let mut parts = vec![now.phase.clone()];
    if let Some(why) = &now.waits {
        parts.push(format!("waits: {why}"));
    }
    if now.round > 0 {
        parts.push(format!("round {}", now.round));
    }
    if now.bytes > Bytes(0) {
        parts.push(now.bytes.to_string());
    }
    if now.rate > Bytes(0) {
        parts.push(format!("{}/s", now.rate));
    }
    if let Some(percent) = throttled.filter(|_| now.round > 0) {
        parts.push(format!("held back by {percent} %"));
    }
    if let Some(window) = now.predicted_window {
        parts.push(format!("predicted window {}", seconds(window)));
    }
    parts.join(", ")
}

/// How a migration ended, on one line.
pub(crate) fn ending(migration: &Migration) -> String {
    let state = migration.state.as_str();
    let window = window_seconds(migration)
        .map(|window| format!(", window {}", seconds(window)))
        .unwrap_or_default();
    let error = migration
        .error
        .as_ref()
        .map(|error| format!(": {error}"))
        .unwrap_or_default();
    format!("{state}{window}{error}")
}

/// The whole window in seconds.
pub(crate) fn window_seconds(migration: &Migration) -> Option<f64> {
    migration
        .window_seconds
        .map(|window| window.platform + window.application)
}

/// Everything about one migration: its phases with their share of the window, the rounds, what
/// happened to connections.
pub(crate) fn details(migration: &Migration) -> String {
    let head = format!("{}: {}\n", title(migration), ending(migration));
    let rows: Vec<_> = phases(migration)
        .map(|(phase, time)| vec![format!("  {phase}"), seconds(time), share(phase).to_owned()])
        .collect();
    let phases = if rows.is_empty() {
        String::new()
    } else {
        table(&["  PHASE", "TIME", "SHARE"], &rows)
    };
    let window = migration.window_seconds.map(|window| {
        let predicted = migration
            .predicted_window
            .map(|predicted| format!(", predicted {}", seconds(predicted)))
            .unwrap_or_default();
        format!(
            "  window       {} = platform {} + application {}{predicted}\n",
            seconds(window.platform + window.application),
            seconds(window.platform),
            seconds(window.application),
        )
    });
    let connections = migration.connections;
    let connections = format!(
        "  connections  {} drained, {} parked, {} refused\n",
        connections.drained, connections.parked, connections.refused
    );
    let sent = format!(
        "  sent         {} in all, {} before the window{}\n",
        migration.bytes,
        count(migration.rounds.len(), "round"),
        rounds(migration),
    );
    let held = migration
        .throttled
        .map(|percent| format!("  held back    by {percent} % before the window\n"));
    [
        head,
        phases,
        window.unwrap_or_default(),
        connections,
        sent,
        held.unwrap_or_default(),
    ]
    .concat()
}

fn rounds(migration: &Migration) -> String {
    let word = |round: &Round| format!("{} in {}", round.bytes, seconds(round.seconds));
    let (first, others) = migration
        .rounds
        .split_at(migration.rounds.len().min(ROUNDS));
    let mut list: Vec<_> = first.iter().map(word).collect();
    if !others.is_empty() {
        let sum = Round {
            bytes: others
                .iter()
                .fold(Bytes(0), |sum, round| sum.saturating_add(round.bytes)),
            seconds: others.iter().map(|round| round.seconds).sum(),
        };
        list.push(format!("{} more: {}", others.len(), word(&sum)));
    }
    if list.is_empty() {
        String::new()
    } else {
        format!(": {}", list.join(", "))
    }
}

/// The phases that happened in their order; ones that a newer daemon added come last.
fn phases(migration: &Migration) -> impl Iterator<Item = (&str, f64)> {
    let known = PHASES
        .into_iter()
        .filter_map(|phase| migration.phases.get(phase).map(|time| (phase, *time)));
    let unknown = migration
        .phases
        .iter()
        .filter(|(phase, _)| !PHASES.contains(&phase.as_str()))
        .map(|(phase, time)| (phase.as_str(), *time));
    known.chain(unknown)
}

/// Whose time a phase is: the application's, Rehome's, or nobody's because clients are served.
fn share(phase: &str) -> &'static str {
    match phase {
        "queue" | "prepare" | "precopy" | "park" | "drain" => "before the window",
        "stop" | "health" => "application",
        "flush" | "final_delta" | "release" | "adopt" | "start" | "open" => "platform",
        _ => NOTHING,
    }
}

/// The history as a table.
pub(crate) fn history(migrations: &[Migration]) -> String {
    const HEADER: [&str; 9] = [
        "ID",
        "APPLICATION",
        "FROM",
        "TO",
        "STATE",
        "STARTED",
        "WINDOW",
        "SENT",
        "REFUSED",
    ];
    if migrations.is_empty() {
        return "no migrations\n".to_owned();
    }
    let rows: Vec<_> = migrations.iter().map(history_row).collect();
    table(&HEADER, &rows)
}

fn history_row(migration: &Migration) -> Vec<String> {
    vec![
        migration.id.to_string(),
        migration.application.to_string(),
        migration.from.to_string(),
        migration.to.to_string(),
        migration.state.as_str().to_owned(),
        migration.started_at.clone(),
        window_seconds(migration).map_or_else(|| NOTHING.to_owned(), seconds),
        migration.bytes.to_string(),
        migration.connections.refused.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rehome_shared::api::cluster::MigrationState;

    use super::super::sample::migration;
    use super::*;

    #[test]
    fn a_running_migration_is_one_line() {
        let mut value = MigrationNow {
            phase: "precopy".to_owned(),
            round: 2,
            bytes: Bytes(12 << 20),
            rate: Bytes(40 << 20),
            predicted_window: Some(1.25),
            elapsed: Duration::from_secs(3),
            waits: None,
        };
        assert_eq!(
            now(&value, None),
            "precopy, round 2, 12.0 MiB, 40.0 MiB/s, predicted window 1.25 s"
        );
        value = MigrationNow {
            phase: "stop".to_owned(),
            round: 0,
            bytes: Bytes(0),
            rate: Bytes(0),
            predicted_window: None,
            ..value
        };
        assert_eq!(now(&value, Some(30)), "stop");
        value.round = 3;
        assert_eq!(now(&value, Some(30)), "stop, round 3, held back by 30 %");
        value = MigrationNow {
            phase: "queue".to_owned(),
            round: 0,
            waits: Some("10.0.0.2 is busy with web".to_owned()),
            ..value
        };
        assert_eq!(now(&value, None), "queue, waits: 10.0.0.2 is busy with web");
    }

    #[test]
    fn details_list_phases_in_their_order_with_their_share() {
        let mut value = migration(MigrationState::Done);
        value.phases.insert("anneal".to_owned(), 1.0);
        value.predicted_window = Some(0.9);
        value.throttled = Some(30);
        assert_eq!(
            details(&value),
            "db 10.0.0.1 → 10.0.0.2: done, window 850 ms\n\
             \x20 PHASE    TIME    SHARE\n\
             \x20 prepare  300 ms  before the window\n\
             \x20 precopy  4.00 s  before the window\n\
             \x20 stop     500 ms  application\n\
             \x20 start    250 ms  platform\n\
             \x20 health   100 ms  application\n\
             \x20 anneal   1.00 s  -\n\
             \x20 window       850 ms = platform 250 ms + application 600 ms, predicted 900 ms\n\
             \x20 connections  5 drained, 12 parked, 0 refused\n\
             \x20 sent         42.0 MiB in all, 2 rounds before the window: 40.0 MiB in 3.00 s, 2.00 MiB in 200 ms\n\
             \x20 held back    by 30 % before the window\n"
        );
    }

    #[test]
    fn many_rounds_are_summed_up() {
        let mut value = migration(MigrationState::Done);
        let round = Round {
            bytes: Bytes(1 << 20),
            seconds: 0.25,
        };
        value.rounds = vec![round; 11];
        let text = details(&value);
        assert!(
            text.contains(", 1.00 MiB in 250 ms, 3 more: 3.00 MiB in 750 ms\n"),
            "{text}"
        );
        assert_eq!(text.matches("1.00 MiB in 250 ms").count(), ROUNDS);
    }

    #[test]
    fn a_migration_that_failed_says_why() {
        let mut value = migration(MigrationState::Returned);
        value.window_seconds = None;
        value.error = Some("the destination was not healthy".to_owned());
        assert_eq!(ending(&value), "returned: the destination was not healthy");
        assert!(!details(&value).contains("window       "));
    }

    #[test]
    fn every_phase_has_a_share() {
        for phase in PHASES {
            assert_ne!(share(phase), NOTHING, "{phase}");
        }
    }

    #[test]
    fn the_history_is_a_table() {
        assert_eq!(history(&[]), "no migrations\n");
        let text = history(&[migration(MigrationState::Done)]);
        assert!(
            text.contains(
                "db           10.0.0.1  10.0.0.2  done   2026-11-22T10:00:00Z  850 ms  42.0 MiB  0"
            ),
            "{text}"
        );
    }
}
