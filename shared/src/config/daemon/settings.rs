//! What both daemons' files have in common: paths, addresses, logging.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::super::problem::{Problem, Source};
use super::super::read::{At, Fields, Report};
use super::super::yaml;
use super::{Log, LogFormat, TlsFiles};
use crate::ids::HostAddr;

/// Reads a file's top mapping, lets `build` take what it knows, and gives its value only if
/// nothing at all was wrong.
pub(super) fn read<T>(
    source: &Source,
    known: &[&str],
    build: impl FnOnce(&mut Fields<'_>, &mut Report) -> Option<T>,
) -> Result<T, Vec<Problem>> {
    let (root, problems) = yaml::parse(source);
    let mut report = Report::new(source);
    report.problems = problems;
    let mut built = None;
    if let Some(root) = &root
        && let Some(mut fields) = At::root(root).mapping(&mut report, "a mapping of settings")
    {
        fields.version(&mut report);
        built = build(&mut fields, &mut report);
        fields.finish(&mut report, known);
    }
    match built {
        Some(value) if report.problems.is_empty() => Ok(value),
        Some(_) | None => {
            report.problems.sort();
            Err(report.problems)
        }
    }
}

/// An absolute path.
pub(super) fn path(at: &At<'_>, report: &mut Report) -> Option<PathBuf> {
    let rule = "an absolute path";
    let text = at.text(report, rule)?;
    if text.starts_with('/') && !text.contains('\0') {
        return Some(PathBuf::from(text));
    }
    report.problem(
        &at.place,
        format!("{text:?} is not an absolute path"),
        "begin it with '/'",
    );
    None
}

/// The path at a key, or the default.
pub(super) fn path_or(
    fields: &mut Fields<'_>,
    report: &mut Report,
    key: &str,
    default: impl Into<PathBuf>,
) -> PathBuf {
    fields
        .take(key)
        .and_then(|at| path(&at, report))
        .unwrap_or_else(|| default.into())
}

/// The address and port at a key, or the default.
pub(super) fn address_or(
    fields: &mut Fields<'_>,
    report: &mut Report,
    key: &str,
    default: SocketAddr,
) -> SocketAddr {
    fields
        .take(key)
        .and_then(|at| socket_address(&at, report))
        .unwrap_or(default)
}

/// An address with a port.
pub(super) fn socket_address(at: &At<'_>, report: &mut Report) -> Option<SocketAddr> {
    let rule = "an address and a port, for example \"127.0.0.1:9420\" or \"[::]:7420\"";
    at.parsed(report, rule, |text| {
        text.parse()
            .map_err(|_| format!("{text:?} is not an address and a port"))
    })
}

/// The files of a host's identity.
pub(super) fn tls_files(
    fields: &mut Fields<'_>,
    report: &mut Report,
    cure: &str,
) -> Option<TlsFiles> {
    let mut file = |key| {
        fields
            .require(report, key, cure)
            .and_then(|at| path(&at, report))
    };
    let (ca, certificate, key) = (file("ca"), file("certificate"), file("key"));
    Some(TlsFiles {
        ca: ca?,
        certificate: certificate?,
        key: key?,
    })
}

/// A host as the deployment names it.
pub(super) fn host(at: &At<'_>, report: &mut Report) -> Option<HostAddr> {
    at.parsed(
        report,
        "an IPv4 address, an IPv6 address or a host name",
        str::parse,
    )
}

/// The mapping at a key, read by `build`; the default where the key is absent.
pub(super) fn section<T: Default>(
    fields: &mut Fields<'_>,
    report: &mut Report,
    key: &str,
    known: &[&str],
    build: impl FnOnce(&mut Fields<'_>, &mut Report) -> T,
) -> T {
    let rule = format!("a mapping of {}", known.join(", "));
    let inner = fields.take(key).and_then(|at| at.mapping(report, &rule));
    let Some(mut inner) = inner else {
        return T::default();
    };
    let value = build(&mut inner, report);
    inner.finish(report, known);
    value
}

/// The key `log`.
pub(super) fn log(fields: &mut Fields<'_>, report: &mut Report) -> Log {
    section(
        fields,
        report,
        "log",
        &["format", "filter"],
        |fields, report| {
            let default = Log::default();
            let words = [("text", LogFormat::Text), ("json", LogFormat::Json)];
            Log {
                format: fields
                    .take("format")
                    .and_then(|at| at.word(report, "log format", &words))
                    .unwrap_or(default.format),
                filter: fields
                    .take("filter")
                    .and_then(|at| {
                        at.parsed(
                            report,
                            "a filter, for example info or warn,proxyd=debug",
                            filter,
                        )
                    })
                    .unwrap_or(default.filter),
            }
        },
    )
}

fn filter(text: &str) -> Result<String, impl Display + use<>> {
    if text.trim().is_empty() {
        Err("the log filter is empty")
    } else {
        Ok(text.to_owned())
    }
}
