//! `migrated.yml`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::super::policy::migration;
use super::super::problem::{Problem, Source};
use super::super::quantity::{positive_duration, size};
use super::super::read::{Fields, Report};
use super::settings::{address_or, host, log, path, path_or, read, section, tls_files};
use super::{
    Backend, DeploymentFiles, MIGRATED_SOCKET, MigratedConfig, MigratedLimits, PEER_PORT,
    PoolImage, ProxyEndpoint, Runtime, Storage, TlsFiles, localhost,
};
use crate::config::model::MigrationLimits;

const KEYS: [&str; 16] = [
    "version",
    "address",
    "listen",
    "socket",
    "state",
    "metrics",
    "log",
    "tls",
    "peer_port",
    "storage",
    "runtime",
    "proxy",
    "migration",
    "limits",
    "deployment",
    "application",
];

/// Reads `migrated.yml`.
///
/// # Errors
/// Every problem of the file, in its order.
pub fn migrated_config(source: &Source) -> Result<MigratedConfig, Vec<Problem>> {
    read(source, &KEYS, build)
}

fn build(fields: &mut Fields<'_>, report: &mut Report) -> Option<MigratedConfig> {
    let address = fields
        .require(
            report,
            "address",
            "write this host's address as deployment.yml names it",
        )
        .and_then(|at| host(&at, report));
    let tls = tls(fields, report);
    let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PEER_PORT);
    let listen = address_or(fields, report, "listen", any);
    let socket = path_or(fields, report, "socket", MIGRATED_SOCKET);
    let state = path_or(fields, report, "state", "/var/lib/rehome/migrated");
    let metrics = address_or(fields, report, "metrics", localhost(9420));
    let log = log(fields, report);
    let peer_port = fields
        .take("peer_port")
        .and_then(|at| at.port(report, "peer_port"))
        .unwrap_or(PEER_PORT);
    let storage = storage(fields, report);
    let runtime = section(fields, report, "runtime", &["kind", "socket"], runtime);
    let proxy = section(fields, report, "proxy", &["socket", "trunk_port"], proxy);
    let migration = migration_limits(fields, report);
    let limits = section(
        fields,
        report,
        "limits",
        &[
            "concurrent_migrations",
            "bandwidth",
            "request_bytes",
            "start_alone_after",
        ],
        limits,
    );
    let files = files(fields, report);
    Some(MigratedConfig {
        address: address?,
        listen,
        socket,
        state,
        metrics,
        log,
        tls: tls?,
        peer_port,
        storage,
        runtime,
        proxy,
        migration,
        limits,
        files,
    })
}

fn tls(fields: &mut Fields<'_>, report: &mut Report) -> Option<TlsFiles> {
    let cure = "write tls: {ca: FILE, certificate: FILE, key: FILE}";
    let mut inner = fields
        .require(report, "tls", cure)?
        .mapping(report, "a mapping of ca, certificate and key")?;
    let files = tls_files(&mut inner, report, cure);
    inner.finish(report, &["ca", "certificate", "key"]);
    files
}

fn storage(fields: &mut Fields<'_>, report: &mut Report) -> Storage {
    section(
        fields,
        report,
        "storage",
        &["backend", "path", "image"],
        |fields, report| {
            if let Some(at) = fields.take("backend") {
                let words = [("btrfs", true), ("zfs", false), ("directory", false)];
                if at.word(report, "storage backend", &words) == Some(false) {
                    report.problem(
                        &at.place,
                        "this storage backend is not built in this version",
                        "write 'backend: btrfs'; where the host has no btrfs of its own, add \
                     'image: {path: FILE, size: 20GiB}'",
                    );
                }
            }
            let default = Storage::default();
            Storage {
                backend: Backend::Btrfs,
                path: path_or(fields, report, "path", default.path),
                image: fields.take("image").and_then(|at| {
                    let cure = "write image: {path: FILE, size: 20GiB}";
                    let mut inner = at.mapping(report, "a mapping of path and size")?;
                    let file = inner
                        .require(report, "path", cure)
                        .and_then(|at| path(&at, report));
                    let size = inner
                        .require(report, "size", cure)
                        .and_then(|at| size(&at, report, "size"));
                    inner.finish(report, &["path", "size"]);
                    Some(PoolImage {
                        path: file?,
                        size: size?,
                    })
                }),
            }
        },
    )
}

fn runtime(fields: &mut Fields<'_>, report: &mut Report) -> Runtime {
    #[derive(Clone, Copy)]
    enum Kind {
        Docker,
        Podman,
        Process,
    }
    let words = [
        ("docker", Kind::Docker),
        ("podman", Kind::Podman),
        ("process", Kind::Process),
    ];
    let kind = fields
        .take("kind")
        .and_then(|at| at.word(report, "runtime", &words));
    let socket = fields.take("socket");
    if let (Some(Kind::Process), Some(at)) = (kind, &socket) {
        report.problem(
            &at.place,
            "the process runtime has no socket",
            "remove 'socket'",
        );
    }
    let socket = socket.and_then(|at| path(&at, report));
    match kind.unwrap_or(Kind::Docker) {
        Kind::Docker => Runtime::Docker {
            socket: socket.unwrap_or_else(|| "/var/run/docker.sock".into()),
        },
        Kind::Podman => Runtime::Podman {
            socket: socket.unwrap_or_else(|| "/run/podman/podman.sock".into()),
        },
        Kind::Process => Runtime::Process,
    }
}

fn proxy(fields: &mut Fields<'_>, report: &mut Report) -> ProxyEndpoint {
    let default = ProxyEndpoint::default();
    ProxyEndpoint {
        socket: path_or(fields, report, "socket", default.socket),
        trunk_port: fields
            .take("trunk_port")
            .and_then(|at| at.port(report, "trunk_port"))
            .unwrap_or(default.trunk_port),
    }
}

fn migration_limits(fields: &mut Fields<'_>, report: &mut Report) -> MigrationLimits {
    let Some(at) = fields.take("migration") else {
        return MigrationLimits::default();
    };
    let limits = MigrationLimits::default().with(&migration(&at, report));
    if limits.downtime_budget > limits.hard_cap {
        report.problem(
            &at.place,
            "downtime_budget is larger than hard_cap with the defaults filled in (3s and 10s)",
            "write both, hard_cap at least as large",
        );
    }
    limits
}

fn limits(fields: &mut Fields<'_>, report: &mut Report) -> MigratedLimits {
    let default = MigratedLimits::default();
    MigratedLimits {
        concurrent_migrations: fields
            .take("concurrent_migrations")
            .and_then(|at| at.count(report, 1, "concurrent_migrations"))
            .unwrap_or(default.concurrent_migrations),
        bandwidth: fields
            .take("bandwidth")
            .and_then(|at| size(&at, report, "bandwidth"))
            .or(default.bandwidth),
        request_bytes: fields
            .take("request_bytes")
            .and_then(|at| size(&at, report, "request_bytes"))
            .unwrap_or(default.request_bytes),
        start_alone_after: fields
            .take("start_alone_after")
            .and_then(|at| positive_duration(&at, report))
            .unwrap_or(default.start_alone_after),
    }
}

fn files(fields: &mut Fields<'_>, report: &mut Report) -> Option<DeploymentFiles> {
    let (deployment, application) = (fields.take("deployment"), fields.take("application"));
    let lone = match (&deployment, &application) {
        (Some(at), None) => Some((at, "application")),
        (None, Some(at)) => Some((at, "deployment")),
        (Some(_), Some(_)) | (None, None) => None,
    };
    if let Some((at, missing)) = lone {
        report.problem(
            &at.place,
            format!("'{missing}' is missing beside it"),
            "a host driven by files needs both 'deployment' and 'application'",
        );
    }
    let deployment = deployment.and_then(|at| path(&at, report));
    let application = application.and_then(|at| path(&at, report));
    Some(DeploymentFiles {
        deployment: deployment?,
        application: application?,
    })
}
