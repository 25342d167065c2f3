//! Image references: `repository[:tag]` and `repository@digest`, with a registry and its port
//! told apart from a tag. The rules are those of the registries' own grammar, so that a name
//! accepted here is one that an engine can pull.

use super::model::{Image, ImageVersion};
use super::read::{At, Report};

/// The longest repository name that registries take.
const MAX_REPOSITORY: usize = 255;

/// The value of `image`.
pub(super) fn image(at: &At<'_>, report: &mut Report) -> Option<Image> {
    at.parsed(
        report,
        "an image name, for example acme/db:1.2 or registry:5000/acme/db",
        |text| parse(text).map_err(|why| format!("invalid image name {text:?}: {why}")),
    )
}

fn parse(text: &str) -> Result<Image, &'static str> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) if is_digest(digest) => (name, Some(digest)),
        Some(_) => {
            return Err("what follows '@' is not a digest such as sha256: and 64 hex digits");
        }
        None => (text, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let path_start = name.rfind('/').map_or(0, |slash| slash.saturating_add(1));
    let (repository, tag) = match name.rfind(':').filter(|colon| *colon >= path_start) {
        Some(colon) => {
            let (repository, tag) = name.split_at(colon);
            (repository, Some(tag.trim_start_matches(':')))
        }
        None => (name, None),
    };
    if repository.is_empty() {
        return Err("the repository is empty");
    }
    if repository.len() > MAX_REPOSITORY {
        return Err("the repository is longer than 255 characters");
    }
    if !is_repository(repository) {
        return Err(
            "a repository is lower-case letters and digits, joined by '.', '_', '-' and '/'",
        );
    }
    if !tag.is_none_or(is_tag) {
        return Err(
            "the tag is empty, too long, or holds other characters than letters, digits, '_', '.', '-'",
        );
    }
    let version = match (digest, tag) {
        // With both, engines pull by the digest and ignore the tag.
        (Some(digest), _) => ImageVersion::Digest(digest.to_owned()),
        (None, tag) => ImageVersion::Tag(tag.unwrap_or("latest").to_owned()),
    };
    Ok(Image {
        repository: repository.to_owned(),
        version,
    })
}

fn is_repository(text: &str) -> bool {
    let (first, rest) = match text.split_once('/') {
        Some((first, rest)) if is_registry(first) => (Some(first), rest),
        Some(_) | None => (None, text),
    };
    first.is_none_or(is_registry_name) && rest.split('/').all(is_path_component)
}

/// Whether the first part of a name is a registry, as engines decide it.
fn is_registry(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':'])
}

fn is_registry_name(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        // An IPv6 address ends with its bracket.
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        Some(_) | None => (text, None),
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok());
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    (bracketed || host.split('.').all(label))
        && port.is_none_or(|p| p.parse::<u16>().is_ok_and(|n| n > 0))
}

/// Lower-case letters and digits with single separators between them: `.`, `_`, `__`, or any
/// number of `-`.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && text.split(alphanumeric).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(text: &str) -> (String, String) {
        let image = parse(text).unwrap();
        let ImageVersion::Tag(tag) = image.version else {
            panic!("{text} has no tag")
        };
        (image.repository, tag)
    }

    #[test]
    fn a_colon_is_a_port_before_a_slash_and_a_tag_after_it() {
        for (text, repository, tag) in [
            ("busybox", "busybox", "latest"),
            ("acme/db:1.2", "acme/db", "1.2"),
            ("host:5000/name", "host:5000/name", "latest"),
            ("localhost/name:x", "localhost/name", "x"),
            (
                "Registry.example.com:5000/a/b_c--d:v1",
                "Registry.example.com:5000/a/b_c--d",
                "v1",
            ),
            ("[fd00::1]:5000/name:1", "[fd00::1]:5000/name", "1"),
        ] {
            assert_eq!(
                tagged(text),
                (repository.to_owned(), tag.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for text in [format!("acme/db@{digest}"), format!("acme/db:1.2@{digest}")] {
            let image = parse(&text).unwrap();
            assert_eq!(image.repository, "acme/db");
            assert_eq!(image.version, ImageVersion::Digest(digest.clone()));
        }
    }

    #[test]
    fn what_no_engine_could_pull_is_refused() {
        let long = format!("a/{}", "x".repeat(255));
        for bad in [
            "",
            ":tag",
            "repo:",
            "Acme/db",
            "a b",
            "a//b",
            "/a",
            "a/",
            "a:b:c",
            "a_-b",
            "ä",
            "a@sha256:12",
            "a@",
            "host:port/name",
            "host:0/name",
            "a.b:/c",
            "a:-x",
            "a\n",
            long.as_str(),
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
