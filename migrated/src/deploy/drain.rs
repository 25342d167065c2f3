//! Emptying a host: a deployment that places what is on it on the others.

use std::collections::{BTreeMap, BTreeSet};

use rehome_shared::config::model::Placement;
use rehome_shared::ids::{AppName, HostAddr};

/// The placement with nothing on `host`: each of its applications goes to the one of `others` that
/// has the fewest then, the first by address of those that have as many. `None` when there is
/// nowhere to go.
pub(super) fn emptied(
    placement: &Placement,
    host: &HostAddr,
    others: &BTreeSet<HostAddr>,
) -> Option<Placement> {
    let mut next = placement.clone();
    let leaving: Vec<AppName> = next.get_mut(host).map(std::mem::take).unwrap_or_default();
    let mut counts: BTreeMap<&HostAddr, usize> = others
        .iter()
        .filter(|other| *other != host)
        .map(|other| (other, placement.get(other).map_or(0, Vec::len)))
        .collect();
    for application in leaving {
        let (to, count) = counts
            .iter_mut()
            .min_by_key(|(at, count)| (**count, **at))?;
        *count = count.saturating_add(1);
        next.entry((*to).clone()).or_default().push(application);
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{app, deployment, host};

    fn placed(placement: &[(&str, &[&str])]) -> Placement {
        deployment(1, placement).placement
    }

    fn hosts(names: &[&str]) -> BTreeSet<HostAddr> {
        names.iter().map(|name| host(name)).collect()
    }

    #[test]
    fn each_goes_where_the_fewest_are_and_ties_go_by_address() {
        let before = placed(&[
            ("h1", &["a", "b", "c", "d"]),
            ("h2", &["x", "y"]),
            ("h3", &["z"]),
            ("h4", &[]),
        ]);
        let after = emptied(&before, &host("h1"), &hosts(&["h2", "h3", "h4"])).unwrap();
        let want = placed(&[
            ("h1", &[]),
            ("h2", &["x", "y", "d"]),
            ("h3", &["z", "b"]),
            ("h4", &["a", "c"]),
        ]);
        assert_eq!(after, want);
    }

    #[test]
    fn only_the_named_hosts_take_something_and_never_the_one_that_is_emptied() {
        let before = placed(&[("h1", &["a", "b"]), ("h2", &[]), ("h3", &["x"])]);
        let after = emptied(&before, &host("h1"), &hosts(&["h1", "h3"])).unwrap();
        assert_eq!(
            after,
            placed(&[("h1", &[]), ("h2", &[]), ("h3", &["x", "a", "b"])])
        );
    }

    #[test]
    fn without_another_host_nothing_can_go() {
        let before = placed(&[("h1", &["a"])]);
        assert_eq!(emptied(&before, &host("h1"), &hosts(&["h1"])), None);
    }

    #[test]
    fn an_empty_host_stays_as_it_is_and_nothing_is_lost() {
        let before = placed(&[("h1", &[]), ("h2", &["x"])]);
        assert_eq!(
            emptied(&before, &host("h1"), &hosts(&["h2"])),
            Some(before.clone())
        );
        let names = |placement: &Placement| -> BTreeSet<AppName> {
            placement.values().flatten().cloned().collect()
        };
        let after = emptied(&before, &host("h2"), &hosts(&["h1"])).unwrap();
        assert_eq!(names(&after), BTreeSet::from([app("x")]));
    }
}
