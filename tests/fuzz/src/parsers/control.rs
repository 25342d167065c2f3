//! What is said on the control socket of `proxyd`: a line for each request. What is understood is
//! done to a table, as the keeper does it.

use std::collections::BTreeSet;

use proxyd_core::table::{Changes, RouteTable};
use rehome_shared::api::proxy::{
    CheckPorts, CheckPortsReply, Commit, ConnectionsReply, Drain, GateCounts, GateRef, Prepare,
    RouteKey, RoutesReply, SetRoutes,
};

use super::document;

/// Runs the target.
///
/// # Panics
/// When something is wrong.
pub fn run(bytes: &[u8]) {
    let (mut table, mut kept) = (RouteTable::default(), RouteTable::default());
    for line in bytes.split(|byte| *byte == b'\n') {
        request(line, &mut table, &mut kept);
        answers(line);
    }
}

fn request(line: &[u8], table: &mut RouteTable, kept: &mut RouteTable) {
    let before = table.clone();
    if let Some(desired) = document::<SetRoutes>(line) {
        let applied = table.apply(&desired);
        keep(table, kept, &applied.changes);
        let again = table.apply(&desired);
        assert!(
            again.changes.is_empty(),
            "a set that is repeated changes something"
        );
    }
    if let Some(verb) = document::<Prepare>(line)
        && let Ok(changes) = table.prepare(&verb)
    {
        keep(table, kept, &changes);
        let again = table.prepare(&verb);
        assert!(again.is_ok_and(|again| again.is_empty()), "prepare, twice");
    }
    if let Some(verb) = document::<Commit>(line)
        && let Ok(changes) = table.commit(&verb)
    {
        keep(table, kept, &changes);
        let again = table.commit(&verb);
        assert!(again.is_ok_and(|again| again.is_empty()), "commit, twice");
    }
    if let Some(verb) = document::<GateRef>(line) {
        drop(table.check_prepared(&verb));
        if let Ok(changes) = table.rollback(&verb) {
            keep(table, kept, &changes);
        }
    }
    document::<Drain>(line);
    document::<CheckPorts>(line);
    // Whatever was said, no route goes back.
    for (key, route) in table.routes() {
        let was = before.route(*key);
        let owned = was.filter(|was| was.application() == route.application());
        assert!(
            owned.is_none_or(|was| was.version <= route.version),
            "{key} went back to {}",
            route.version
        );
    }
}

/// What is written down of a change makes the same table.
fn keep(table: &RouteTable, kept: &mut RouteTable, changes: &Changes) {
    if let Some(record) = table.record_of(changes) {
        kept.replay(record);
    }
    let keys = |table: &RouteTable| {
        table
            .routes()
            .keys()
            .copied()
            .collect::<BTreeSet<RouteKey>>()
    };
    assert_eq!(keys(table), keys(kept), "other routes are kept");
    assert!(table == kept, "{table:?} is kept as {kept:?}");
}

fn answers(line: &[u8]) {
    document::<RoutesReply>(line);
    document::<GateCounts>(line);
    document::<ConnectionsReply>(line);
    document::<CheckPortsReply>(line);
}
