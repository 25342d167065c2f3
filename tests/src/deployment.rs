//! What shall run where, as a user writes it: two files. JSON is YAML, so they are written as
//! JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// A deployment of applications on the hosts of a lab, which are counted from 1.
#[derive(Debug, Clone, Default)]
pub struct Deployment {
    applications: Map<String, Value>,
    placement: BTreeMap<usize, Vec<String>>,
}

impl Deployment {
    /// Nothing runs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more application, or with another body or place of one that is there.
    #[must_use]
    pub fn with(&self, name: &str, host: usize, body: &Value) -> Self {
        let mut next = self.without(name);
        next.applications.insert(name.to_owned(), body.clone());
        next.placement
            .entry(host)
            .or_default()
            .push(name.to_owned());
        next
    }

    /// The same without an application.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let mut next = self.clone();
        next.applications.remove(name);
        for names in next.placement.values_mut() {
            names.retain(|placed| placed != name);
        }
        next
    }

    /// Writes `deployment.yml` and `application.yml`. Every one of `addresses` is in it, if only
    /// with an empty list.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(
        &self,
        directory: &Path,
        addresses: &[&str],
    ) -> anyhow::Result<(PathBuf, PathBuf)> {
        let nodes: Map<String, Value> = addresses
            .iter()
            .enumerate()
            .map(|(index, address)| {
                let names = self
                    .placement
                    .get(&(index + 1))
                    .cloned()
                    .unwrap_or_default();
                ((*address).to_owned(), json!(names))
            })
            .collect();
        let deployment = directory.join("deployment.yml");
        let application = directory.join("application.yml");
        let placed = json!({"version": 1, "nodes": nodes});
        let described = json!({"version": 1, "applications": self.applications});
        std::fs::write(&deployment, format!("{placed:#}\n"))?;
        std::fs::write(&application, format!("{described:#}\n"))?;
        Ok((deployment, application))
    }
}

/// The hard cap of moves in tests: windows are those of a machine that may stand still for seconds,
/// and whose disk may. A client waits no longer than the park timeout, which is longer.
pub const HARD_CAP: &str = "40s";

/// A body with some keys set to other values.
#[must_use]
pub fn changed(body: &Value, changes: &Value) -> Value {
    let mut next = body.clone();
    for (key, value) in changes.as_object().into_iter().flatten() {
        if let Some(keys) = next.as_object_mut() {
            keys.insert(key.clone(), value.clone());
        }
    }
    next
}
