//! What `rehome gc` found.

use std::fmt::Write as _;

use rehome_shared::api::gc::{Collected, HostGarbage, Item};

use super::{count, or_nothing, table};

/// A table of what was found, what could not be decided, and hosts that could not be asked.
pub(crate) fn collected(collected: &Collected) -> String {
    let found = collected
        .hosts
        .iter()
        .flat_map(|host| items(host).map(|item| (host.host.as_str(), item)));
    let rows: Vec<Vec<String>> = found.map(|(host, item)| row(host, item)).collect();
    let mut text = String::new();
    if rows.is_empty() {
        text.push_str("nothing is left over\n");
    } else {
        let header = ["HOST", "KIND", "APPLICATION", "NAME", "BYTES", "WHY"];
        text.push_str(&table(&header, &rows));
        text.push_str(&sum(collected));
    }
    for host in &collected.hosts {
        for doubt in &host.doubts {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "{}: {doubt}", host.host);
        }
        if let Some(problem) = &host.problem {
            let _written = writeln!(text, "{}: {problem}", host.host);
        }
    }
    text
}

fn items(host: &HostGarbage) -> impl Iterator<Item = &Item> {
    host.garbage.iter().chain(&host.diverged)
}

fn row(host: &str, item: &Item) -> Vec<String> {
    let why = match &item.error {
        Some(error) => format!("{}; not removed: {error}", item.why),
        None => item.why.clone(),
    };
    vec![
        host.to_owned(),
        item.kind.as_str().to_owned(),
        or_nothing(item.application.as_ref()),
        item.name.clone(),
        item.bytes.to_string(),
        why,
    ]
}

fn sum(collected: &Collected) -> String {
    let all = collected.hosts.iter().flat_map(items);
    let removed = all.filter(|item| item.removed).count();
    let garbage = collected.hosts.iter().flat_map(|h| &h.garbage).count();
    let copies = collected.hosts.iter().flat_map(|h| &h.diverged);
    let kept = copies.filter(|copy| !copy.removed).count();
    let first = if removed > 0 {
        format!("{} removed\n", count(removed, "item"))
    } else if garbage > 0 {
        let verb = "`rehome gc` removes them";
        format!("{}: {verb}\n", count(garbage, "item"))
    } else {
        String::new()
    };
    let verb = "kept until `rehome gc --diverged APPLICATION` removes them";
    match kept {
        0 => first,
        _ => format!("{first}{kept} diverged: {verb}\n"),
    }
}

#[cfg(test)]
mod tests {
    use rehome_shared::api::gc::Kind;
    use rehome_shared::ids::{AppName, HostAddr};
    use rehome_shared::units::Bytes;

    use super::*;

    fn found(removed: bool, error: Option<&str>) -> Collected {
        let item = Item {
            kind: Kind::Snapshot,
            application: AppName::try_new("db").ok(),
            dataset: None,
            name: "mig-1".to_owned(),
            bytes: Bytes(4096),
            why: "its migration is over".to_owned(),
            removed,
            error: error.map(ToOwned::to_owned),
        };
        let host = |name: &str, garbage, problem: Option<&str>| HostGarbage {
            host: HostAddr::try_new(name).unwrap(),
            problem: problem.map(ToOwned::to_owned),
            garbage,
            doubts: Vec::new(),
            diverged: Vec::new(),
        };
        Collected {
            hosts: vec![
                host("h1", vec![item], None),
                host("h2", Vec::new(), Some("it cannot be asked")),
            ],
        }
    }

    #[test]
    fn a_dry_run_says_how_to_remove_what_it_found_and_who_was_silent() {
        let text = collected(&found(false, None));
        assert!(text.contains("h1    snapshot  db"), "{text}");
        assert!(text.contains("1 item: `rehome gc` removes them"), "{text}");
        assert!(text.ends_with("h2: it cannot be asked\n"), "{text}");
    }

    #[test]
    fn diverged_copies_are_listed_and_say_what_removes_them() {
        let mut all = found(false, None);
        let mut copy = all.hosts[0].garbage.remove(0);
        copy.kind = Kind::Diverged;
        all.hosts[1].diverged.push(copy);
        let text = collected(&all);
        assert!(text.contains("h2    diverged copy  db"), "{text}");
        assert!(!text.contains("`rehome gc` removes"), "{text}");
        assert!(
            text.contains("1 diverged: kept until `rehome gc --diverged APPLICATION`"),
            "{text}"
        );
        all.hosts[1].diverged[0].removed = true;
        let text = collected(&all);
        assert!(
            text.contains("1 item removed") && !text.contains("kept until"),
            "{text}"
        );
    }

    #[test]
    fn what_was_removed_is_counted_and_what_was_not_says_why() {
        assert!(collected(&found(true, None)).contains("1 item removed"));
        let failed = collected(&found(false, Some("busy")));
        assert!(
            failed.contains("its migration is over; not removed: busy"),
            "{failed}"
        );
        let empty = Collected { hosts: Vec::new() };
        assert_eq!(collected(&empty), "nothing is left over\n");
    }
}
