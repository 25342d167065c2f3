//! Every YAML file under `config/` that Rehome reads is a good one, and says what it claims.

use std::fs;
use std::path::{Path, PathBuf};

use rehome_shared::config::daemon::{
    DeploymentFiles, Log, MigratedLimits, ProxyEndpoint, ProxydLimits, ProxydTimeouts, Runtime,
    Trunk, migrated_config, proxyd_config,
};
use rehome_shared::config::meaning::meaning;
use rehome_shared::config::model::MigrationLimits;
use rehome_shared::config::{Loaded, Source, load};

type TestResult = Result<(), Box<dyn std::error::Error>>;

fn config() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config")
}

fn source(name: &str) -> Result<Source, std::io::Error> {
    Ok(Source::new(name, fs::read_to_string(config().join(name))?))
}

fn tutorial(application: &str, deployment: &str) -> Result<Loaded, Box<dyn std::error::Error>> {
    let application = source(&format!("tutorial/{application}"))?;
    let deployment = source(&format!("tutorial/{deployment}"))?;
    load(&application, Some(&deployment)).map_err(|problems| format!("{problems:#?}").into())
}

#[test]
fn the_tutorial_is_accepted_before_and_after_the_move() -> TestResult {
    let before = tutorial("application.yml", "deployment.yml")?;
    let after = tutorial("application.yml", "deployment-moved.yml")?;
    assert_eq!(before.warnings, []);
    assert_eq!(before.applications, after.applications);
    let nodes = |loaded: &Loaded| meaning(loaded)["nodes"].clone();
    assert_eq!(
        nodes(&before),
        serde_json::json!({
            "172.16.255.250": ["elasticsearch"],
            "172.16.255.251": ["logstash"],
            "172.16.255.252": ["kibana"],
        })
    );
    assert_eq!(
        nodes(&after),
        serde_json::json!({
            "172.16.255.250": [],
            "172.16.255.251": ["logstash"],
            "172.16.255.252": ["elasticsearch", "kibana"],
        })
    );
    Ok(())
}

#[test]
fn the_tutorials_two_formats_mean_the_same() -> TestResult {
    let native = tutorial("application.yml", "deployment.yml")?;
    let fig = tutorial("fig.yml", "deployment.yml")?;
    assert_eq!(
        (native.format.as_str(), fig.format.as_str()),
        ("native", "fig")
    );
    assert_eq!(native.applications, fig.applications);
    assert_eq!(native.placement, fig.placement);
    Ok(())
}

/// The samples show the defaults, so that a comment never drifts from the code.
#[test]
fn the_daemons_samples_show_the_defaults() -> TestResult {
    let migrated = migrated_config(&source("migrated.yml")?).map_err(|p| format!("{p:#?}"))?;
    let short = "version: 1\naddress: 10.77.0.11\ntls: {ca: /etc/rehome/tls/ca.pem, \
                 certificate: /etc/rehome/tls/host.pem, key: /etc/rehome/tls/host.key}\n";
    let mut default =
        migrated_config(&Source::new("short", short)).map_err(|p| format!("{p:#?}"))?;
    assert!(migrated.storage.image.is_some() && migrated.migration.bandwidth_limit.is_some());
    default.storage.image.clone_from(&migrated.storage.image);
    default.migration.bandwidth_limit = migrated.migration.bandwidth_limit;
    default.limits.bandwidth = migrated.limits.bandwidth;
    assert_eq!(migrated, default);
    assert_eq!(migrated.proxy, ProxyEndpoint::default());
    assert_eq!(migrated.runtime, Runtime::default());
    assert_eq!(
        MigratedLimits {
            bandwidth: None,
            ..migrated.limits
        },
        MigratedLimits::default()
    );
    assert_eq!(
        MigrationLimits {
            bandwidth_limit: None,
            ..migrated.migration
        },
        MigrationLimits::default()
    );

    let proxyd = proxyd_config(&source("proxyd.yml")?).map_err(|p| format!("{p:#?}"))?;
    assert_eq!(proxyd.limits, ProxydLimits::default());
    assert_eq!(proxyd.timeouts, ProxydTimeouts::default());
    // Whether trunks are sealed is an example; what else stands in that block is not.
    let files = "ca: /etc/rehome/tls/ca.pem, certificate: /etc/rehome/tls/host.pem, \
                 key: /etc/rehome/tls/host.key";
    let short = format!("version: 1\ntrunk: {{tls: {{{files}}}}}\n");
    let short = proxyd_config(&Source::new("short", short)).map_err(|p| format!("{p:#?}"))?;
    assert_eq!(proxyd.trunk, short.trunk);
    let plain = Trunk {
        tls: None,
        ..proxyd.trunk
    };
    assert_eq!(plain, Trunk::default());
    assert_eq!(proxyd.log, Log::default());
    assert_eq!(proxyd.routes.len(), 1);
    Ok(())
}

/// The lines that are commented out are good ones too.
#[test]
fn the_optional_lines_of_migrated_yml_can_be_switched_on() -> TestResult {
    let sample = source("migrated.yml")?;
    let text = sample
        .text
        .replace("# deployment: /", "deployment: /")
        .replace("# application: /", "application: /");
    let config = migrated_config(&Source::new("m", text)).map_err(|p| format!("{p:#?}"))?;
    let files = DeploymentFiles {
        deployment: "/etc/rehome/deployment.yml".into(),
        application: "/etc/rehome/application.yml".into(),
    };
    assert_eq!(config.files, Some(files));
    Ok(())
}

#[test]
fn no_sample_is_left_untested() -> TestResult {
    let mut found: Vec<String> = Vec::new();
    for folder in [config(), config().join("tutorial")] {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "yml" || e == "yaml") {
                found.push(path.strip_prefix(config())?.display().to_string());
            }
        }
    }
    found.sort();
    let tested = [
        "migrated.yml",
        "proxyd.yml",
        "tutorial/application.yml",
        "tutorial/deployment-moved.yml",
        "tutorial/deployment.yml",
        "tutorial/fig.yml",
    ];
    assert_eq!(found, tested);
    Ok(())
}
