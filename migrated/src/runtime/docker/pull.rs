//! Fetching an image, with progress and an end in sight.

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::{CreateImageOptions, CreateImageOptionsBuilder};
use futures_util::StreamExt;
use rehome_runtime::report::Report;
use rehome_shared::units::Bytes;

use super::PullProgress;
use super::client::CallError;

/// The engine reports often; after so long without a word nobody answers.
const STALL: Duration = Duration::from_mins(1);

/// The most that a pull may take.
const LIMIT: Duration = Duration::from_hours(1);

/// Pulls `image`; the error says what the registry or the engine said.
pub(super) async fn pull(
    docker: &Docker,
    image: &str,
    progress: &(dyn Fn(PullProgress) + Send + Sync),
) -> Result<(), String> {
    // The whole reference: with a repository alone the engine would fetch all its tags.
    let options: CreateImageOptions = CreateImageOptionsBuilder::default()
        .from_image(image)
        .build();
    let mut events = docker.create_image(Some(options), None, None);
    let mut layers = Layers::default();
    let pull = async {
        loop {
            match tokio::time::timeout(STALL, events.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Ok(event))) => {
                    if layers.note(&event) {
                        progress(layers.sum());
                    }
                }
                Ok(Some(Err(error))) => return Err(Report(&CallError::from(error)).to_string()),
                Err(_) => {
                    return Err(format!(
                        "the registry sent nothing for {} s",
                        STALL.as_secs()
                    ));
                }
            }
        }
    };
    tokio::time::timeout(LIMIT, pull)
        .await
        .unwrap_or_else(|_| Err(format!("it took more than {} s", LIMIT.as_secs())))
}

/// What is known of each layer. An image has at most some hundred.
#[derive(Debug, Default)]
struct Layers(HashMap<String, PullProgress>);

impl Layers {
    /// Takes an event in; whether it was about bytes.
    fn note(&mut self, event: &CreateImageInfo) -> bool {
        let Some(id) = &event.id else { return false };
        match event.status.as_deref() {
            Some("Downloading") => {
                let Some(detail) = &event.progress_detail else {
                    return false;
                };
                let bytes = |n: Option<i64>| Bytes(n.and_then(|n| n.try_into().ok()).unwrap_or(0));
                let layer = PullProgress {
                    current: bytes(detail.current),
                    total: bytes(detail.total).max(bytes(detail.current)),
                };
                self.0.insert(id.clone(), layer);
                true
            }
            Some("Download complete" | "Pull complete") => match self.0.get_mut(id) {
                Some(layer) => {
                    layer.current = layer.total;
                    true
                }
                None => false,
            },
            _ => false,
        }
    }

    fn sum(&self) -> PullProgress {
        self.0
            .values()
            .fold(PullProgress::default(), |sum, layer| PullProgress {
                current: sum.current.saturating_add(layer.current),
                total: sum.total.saturating_add(layer.total),
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn layers_add_up_and_end_full() {
        let mut layers = Layers::default();
        let mut note = |event: Value| layers.note(&serde_json::from_value(event).unwrap());
        assert!(!note(
            json!({"status": "Pulling from library/redis", "id": "7"})
        ));
        assert!(!note(
            json!({"status": "Pulling fs layer", "id": "a", "progressDetail": {}})
        ));
        assert!(note(
            json!({"status": "Downloading", "id": "a", "progressDetail": {"current": 10, "total": 100}})
        ));
        assert!(note(
            json!({"status": "Downloading", "id": "b", "progressDetail": {"current": 5, "total": 50}})
        ));
        // Extracting counts from zero again: those are not bytes fetched.
        assert!(note(
            json!({"status": "Download complete", "id": "a", "progressDetail": {}})
        ));
        assert!(!note(
            json!({"status": "Extracting", "id": "a", "progressDetail": {"current": 1, "total": 100}})
        ));
        assert!(!note(json!({"status": "Status: Downloaded newer image"})));
        assert_eq!(
            layers.sum(),
            PullProgress {
                current: Bytes(105),
                total: Bytes(150)
            }
        );
    }

    #[test]
    fn an_unknown_total_is_never_less_than_what_came() {
        let mut layers = Layers::default();
        let event = json!({"status": "Downloading", "id": "a", "progressDetail": {"current": 10, "total": -1}});
        assert!(layers.note(&serde_json::from_value(event).unwrap()));
        assert_eq!(
            layers.sum(),
            PullProgress {
                current: Bytes(10),
                total: Bytes(10)
            }
        );
    }
}
