//! What Prometheus sees of `migrated`. Labels are bounded: applications and volumes are those of
//! this host, everything else is a fixed word.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use rehome_shared::api::cluster::{ApplicationState, Migration, PHASES};
use rehome_shared::units::Bytes;

use crate::host::Host;
use crate::status;

/// From a millisecond to a bit more than a quarter of an hour.
const SECONDS: [f64; 15] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 1000.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SignLabel {
    measured: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

/// Counters and histograms of this host's migrations.
#[derive(Debug)]
pub struct Metrics {
    migrations: Family<ResultLabel, Counter>,
    phases: Family<PhaseLabel, Histogram, fn() -> Histogram>,
    window: Family<PartLabel, Histogram, fn() -> Histogram>,
    window_error: Family<SignLabel, Histogram, fn() -> Histogram>,
    bytes: Counter,
    raw_bytes: Counter,
    resumes: Counter,
    reloads: Family<ResultLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            migrations: Family::default(),
            phases: Family::new_with_constructor(histogram),
            window: Family::new_with_constructor(histogram),
            window_error: Family::new_with_constructor(histogram),
            bytes: Counter::default(),
            raw_bytes: Counter::default(),
            resumes: Counter::default(),
            reloads: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "migrations",
            "Migrations that this host coordinated, by how they ended",
            self.migrations.clone(),
        );
        registry.register(
            "migration_phase_seconds",
            "Time spent in each phase of a migration",
            self.phases.clone(),
        );
        registry.register(
            "migration_window_seconds",
            "From the stop on the source to serving on the destination, by share",
            self.window.clone(),
        );
        registry.register(
            "migration_window_error_seconds",
            "By how much the window was longer or shorter than predicted when the rounds ended",
            self.window_error.clone(),
        );
        registry.register(
            "migration_bytes",
            "Bytes that migrations of this host sent",
            self.bytes.clone(),
        );
        registry.register(
            "migration_raw_bytes",
            "Bytes of volumes that migrations of this host sent, before they were compressed",
            self.raw_bytes.clone(),
        );
        registry.register(
            "migration_stream_resumes",
            "Streams of this host that were cut and went on where they were",
            self.resumes.clone(),
        );
        registry.register(
            "config_reloads",
            "Reloads of this daemon's files, by result",
            self.reloads.clone(),
        );
        for result in ["applied", "rejected"] {
            drop(self.reloads.get_or_create(&ResultLabel { result }));
        }
    }

    /// A migration is over.
    pub fn migration_ended(&self, report: &Migration) {
        let result = report.state.as_str();
        self.migrations.get_or_create(&ResultLabel { result }).inc();
        self.bytes.inc_by(report.bytes.0);
        for phase in PHASES {
            if let Some(seconds) = report.phases.get(phase) {
                self.phases
                    .get_or_create(&PhaseLabel { phase })
                    .observe(*seconds);
            }
        }
        if let Some(window) = report.window_seconds {
            self.window
                .get_or_create(&PartLabel { part: "platform" })
                .observe(window.platform);
            self.window
                .get_or_create(&PartLabel {
                    part: "application",
                })
                .observe(window.application);
            if let Some(predicted) = report.predicted_window {
                let error = window.platform + window.application - predicted;
                let measured = if error > 0.0 { "longer" } else { "shorter" };
                self.window_error
                    .get_or_create(&SignLabel { measured })
                    .observe(error.abs());
            }
        }
    }

    /// A migration is over, and so many bytes of volumes went into its streams.
    pub fn streamed(&self, raw: Bytes) {
        self.raw_bytes.inc_by(raw.0);
    }

    /// A stream that was cut goes on.
    pub fn stream_resumed(&self) {
        self.resumes.inc();
    }

    /// A reload took effect, or was refused and changed nothing.
    pub fn reloaded(&self, applied: bool) {
        let result = if applied { "applied" } else { "rejected" };
        self.reloads.get_or_create(&ResultLabel { result }).inc();
    }
}

/// Reads what the host knows at each scrape.
#[derive(Debug)]
pub struct HostCollector(pub Arc<Host>);

const STATES: [ApplicationState; 6] = [
    ApplicationState::Starting,
    ApplicationState::Running,
    ApplicationState::Stopped,
    ApplicationState::Migrating,
    ApplicationState::Failed,
    ApplicationState::Blocked,
];

impl Collector for HostCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let report = status::report(&self.0);
        let mut family = encoder.encode_descriptor(
            "applications",
            "Applications that this host owns, by state",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for state in STATES {
            let count = report
                .applications
                .iter()
                .filter(|a| a.state == state)
                .count();
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("state", state.as_str())])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "volume_bytes",
            "Bytes that each volume of this host holds",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for application in &report.applications {
            for volume in &application.volumes {
                let gauge = ConstGauge::new(i64::try_from(volume.bytes.0).unwrap_or(i64::MAX));
                let labels = [
                    ("application", application.name.as_str()),
                    ("volume", volume.name.as_str()),
                ];
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        let generation = ConstCounter::new(report.generation.0);
        let encoder = encoder.encode_descriptor(
            "deployment_generation",
            "The deployment that this host follows",
            None,
            generation.metric_type(),
        )?;
        generation.encode(encoder)
    }
}
