//! What a deployment is going to change, and what a move is expected to take.

use rehome_shared::api::cluster::{Change, ChangeKind, MoveRequest, Prediction};

use super::seconds;

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
    let first = if prediction.delta {
        "a delta of"
    } else {
        "in full,"
    };
    format!(
        "move {} to {}\n  first round       {first} {}\n  predicted window  {}\n  this rests on     {}\n",
        request.application,
        request.to,
        prediction.bytes,
        seconds(prediction.window_seconds),
        prediction.basis,
    )
}

#[cfg(test)]
mod tests {
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
            window_seconds: 1.4,
            basis: "the last 3 moves".to_owned(),
        };
        let full = prediction(&request, &value);
        assert!(full.contains("in full, 45.0 MiB"), "{full}");
        assert!(full.contains("predicted window  1.40 s"), "{full}");
        value.delta = true;
        assert!(prediction(&request, &value).contains("a delta of 45.0 MiB"));
    }
}
