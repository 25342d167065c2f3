//! What a deployment is going to change, and what a move is expected to take.

use rehome_shared::api::cluster::{Change, ChangeKind, MoveRequest, Prediction};

use super::{count, seconds};

/// One line for each change, or one that says that there is none.
pub(crate) fn plan(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing to do: everything is as the files say\n".to_owned();
    }
    let lines: Vec<String> = changes.iter().map(sentence).collect();
    format!("  {}\n", lines.join("\n  "))
}

/// A change in words.
fn sentence(change: &Change) -> String {
    let name = &change.application;
    match &change.kind {
        ChangeKind::Create { host } => format!("create   {name} on {host}"),
        ChangeKind::Start { host } => format!("start    {name} on {host}, its volumes were kept"),
        ChangeKind::Move {
            from,
            to,
            volumes: true,
        } => {
            format!("move     {name} from {from} to {to}, with its volumes")
        }
        ChangeKind::Move {
            from,
            to,
            volumes: false,
        } => {
            format!("move     {name} from {from} to {to}: starts there before it stops here")
        }
        ChangeKind::Restart { host } => {
            format!("restart  {name} on {host}: its configuration changed")
        }
        ChangeKind::Update { host } => format!("update   {name} on {host}, it keeps running"),
        ChangeKind::Stop { host } => format!("stop     {name} on {host}, its volumes are kept"),
    }
}

/// What a move is expected to take.
pub(crate) fn prediction(request: &MoveRequest, prediction: &Prediction) -> String {
    let first = match (&prediction.base, prediction.delta) {
        (Some(base), _) => format!("a delta of {} from {base}", prediction.bytes),
        (None, true) => format!("a delta of {}", prediction.bytes),
        (None, false) => format!("in full, {}", prediction.bytes),
    };
    let mut lines = vec![
        format!("move {} to {}", request.application, request.to),
        format!("  first round       {first}"),
    ];
    if let Some(rate) = prediction.dirty_rate {
        let way = prediction.bandwidth;
        lines.push(format!(
            "  writes            {rate}/s, the way takes {way}/s"
        ));
    }
    if prediction.rounds > 0 {
        let rounds = count(
            usize::try_from(prediction.rounds).unwrap_or(usize::MAX),
            "round",
        );
        let time = seconds(prediction.copy_seconds);
        lines.push(format!("  before the window {rounds} in {time}"));
    }
    if let Some(percent) = prediction.throttled {
        lines.push(format!("  held back         by {percent} % in the end"));
    }
    lines.push(match &prediction.gives_up {
        Some(reason) => format!("  would be given up {reason}"),
        None => format!("  predicted window  {}", window(prediction)),
    });
    lines.push(format!("  this rests on     {}", prediction.basis));
    format!("{}\n", lines.join("\n"))
}

/// The predicted window with its shares.
fn window(prediction: &Prediction) -> String {
    let whole = seconds(prediction.window_seconds);
    match prediction.window {
        None => whole,
        Some(shares) => format!(
            "{whole} = platform {} + application {}",
            seconds(shares.platform),
            seconds(shares.application)
        ),
    }
}

#[cfg(test)]
mod tests {
    use rehome_shared::api::cluster::Window;
    use rehome_shared::units::Bytes;

    use super::super::sample::{app, host};
    use super::*;

    #[test]
    fn every_change_has_its_words() {
        let h = || host("10.0.0.1");
        let kinds = [
            (ChangeKind::Create { host: h() }, "create   db on 10.0.0.1"),
            (
                ChangeKind::Start { host: h() },
                "start    db on 10.0.0.1, its volumes were kept",
            ),
            (
                ChangeKind::Move {
                    from: h(),
                    to: host("10.0.0.2"),
                    volumes: true,
                },
                "move     db from 10.0.0.1 to 10.0.0.2, with its volumes",
            ),
            (
                ChangeKind::Move {
                    from: h(),
                    to: host("10.0.0.2"),
                    volumes: false,
                },
                "move     db from 10.0.0.1 to 10.0.0.2: starts there before it stops here",
            ),
            (
                ChangeKind::Restart { host: h() },
                "restart  db on 10.0.0.1: its configuration changed",
            ),
            (
                ChangeKind::Update { host: h() },
                "update   db on 10.0.0.1, it keeps running",
            ),
            (
                ChangeKind::Stop { host: h() },
                "stop     db on 10.0.0.1, its volumes are kept",
            ),
        ];
        for (kind, want) in kinds {
            let text = plan(&[Change {
                application: app("db"),
                kind,
            }]);
            assert_eq!(text, format!("  {want}\n"));
        }
    }

    #[test]
    fn an_empty_plan_says_so() {
        assert!(plan(&[]).starts_with("nothing to do"));
    }

    #[test]
    fn a_prediction_tells_a_delta_from_a_full_copy() {
        let request = MoveRequest {
            application: app("db"),
            to: host("10.0.0.2"),
        };
        let mut value = Prediction {
            bytes: Bytes(45 << 20),
            delta: false,
            base: None,
            dirty_rate: Some(Bytes(1 << 20)),
            bandwidth: Bytes(9 << 20),
            rounds: 2,
            copy_seconds: 5.6,
            window_seconds: 1.4,
            window: Some(Window {
                platform: 1.0,
                application: 0.4,
            }),
            throttled: None,
            gives_up: None,
            basis: "the last 3 moves".to_owned(),
        };
        let full = prediction(&request, &value);
        assert!(full.contains("in full, 45.0 MiB"), "{full}");
        assert_eq!(
            full,
            "move db to 10.0.0.2\n\
             \x20 first round       in full, 45.0 MiB\n\
             \x20 writes            1.00 MiB/s, the way takes 9.00 MiB/s\n\
             \x20 before the window 2 rounds in 5.60 s\n\
             \x20 predicted window  1.40 s = platform 1.00 s + application 400 ms\n\
             \x20 this rests on     the last 3 moves\n"
        );
        value.delta = true;
        assert!(prediction(&request, &value).contains("a delta of 45.0 MiB\n"));
        value.base = Some("mig-1-final-1".to_owned());
        let delta = prediction(&request, &value);
        assert!(
            delta.contains("a delta of 45.0 MiB from mig-1-final-1"),
            "{delta}"
        );
    }

    #[test]
    fn a_move_that_would_be_given_up_shows_no_window() {
        let request = MoveRequest {
            application: app("db"),
            to: host("10.0.0.2"),
        };
        let value = Prediction {
            bytes: Bytes(1),
            delta: false,
            base: None,
            dirty_rate: None,
            bandwidth: Bytes(1),
            rounds: 8,
            copy_seconds: 80.0,
            window_seconds: 13.0,
            window: None,
            throttled: Some(99),
            gives_up: Some("over the hard cap".to_owned()),
            basis: "what it writes now".to_owned(),
        };
        let text = prediction(&request, &value);
        assert!(
            text.contains("would be given up over the hard cap"),
            "{text}"
        );
        assert!(text.contains("held back         by 99 %"), "{text}");
        assert!(!text.contains("predicted window"), "{text}");
    }
}
