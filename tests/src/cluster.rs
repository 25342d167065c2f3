//! What the cluster says of itself, through the documents of the `rehome` command.

use anyhow::Context as _;
use serde_json::Value;

/// An application in `rehome status --json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// `running`, `failed`, …
    pub state: String,
    /// The address of its owner.
    pub host: Option<String>,
    /// The address of where it should run.
    pub desired_host: Option<String>,
    /// The owner's epoch.
    pub epoch: u64,
    /// The container, or the process.
    pub instance: Option<String>,
    /// When that was started.
    pub started_at: Option<String>,
    /// Why it is not as it should be.
    pub reason: Option<String>,
    /// The names of its volumes with their limits.
    pub volumes: Vec<(String, Option<u64>)>,
}

impl Application {
    /// Reads an entry of the document.
    ///
    /// # Errors
    /// When it lacks what the contract promises.
    pub fn read(entry: &Value) -> anyhow::Result<Self> {
        let text = |key: &str| entry[key].as_str().map(str::to_owned);
        let volumes = entry["volumes"].as_array().context("no volumes")?;
        Ok(Self {
            state: text("state").context("no state")?,
            host: text("host"),
            desired_host: text("desired_host"),
            epoch: entry["epoch"].as_u64().context("no epoch")?,
            instance: text("instance"),
            started_at: text("started_at"),
            reason: text("reason"),
            volumes: volumes
                .iter()
                .map(|volume| {
                    let name = volume["name"].as_str().unwrap_or_default().to_owned();
                    (name, volume["maximum_size"].as_u64())
                })
                .collect(),
        })
    }

    /// Which run of it this is: changes whenever it is restarted.
    #[must_use]
    pub fn run(&self) -> (Option<&str>, Option<&str>) {
        (self.instance.as_deref(), self.started_at.as_deref())
    }
}

/// A migration in `rehome migrations --json`.
#[derive(Debug, Clone)]
pub struct Migration(pub Value);

impl Migration {
    /// `running`, `done`, `aborted`, `returned` or `blocked`.
    #[must_use]
    pub fn state(&self) -> &str {
        self.0["state"].as_str().unwrap_or_default()
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.0["id"].as_str().unwrap_or_default()
    }

    /// What it is doing now.
    #[must_use]
    pub fn phase(&self) -> &str {
        self.0["now"]["phase"].as_str().unwrap_or_default()
    }

    /// Bytes of the stream under way.
    #[must_use]
    pub fn streamed(&self) -> u64 {
        self.0["now"]["bytes"].as_u64().unwrap_or_default()
    }

    /// Bytes sent in all.
    ///
    /// # Errors
    /// When it does not say.
    pub fn bytes(&self) -> anyhow::Result<u64> {
        self.0["bytes"].as_u64().context("no bytes")
    }

    /// The window in seconds.
    ///
    /// # Errors
    /// When it does not say.
    pub fn window(&self) -> anyhow::Result<f64> {
        let part = |name: &str| self.0["window_seconds"][name].as_f64();
        let sum = part("platform").zip(part("application"));
        let (platform, application) = sum.with_context(|| format!("no window: {}", self.0))?;
        Ok(platform + application)
    }

    /// Why it did not end well.
    #[must_use]
    pub fn error(&self) -> &str {
        self.0["error"].as_str().unwrap_or_default()
    }
}
