//! A small storm of clients at a parked gate; `make storm-proxy` has a large one.

use std::time::Duration;

use rehome_tests::storm::Storm;

/// All three tiers are full: held, the kernel's queue, and SYNs that are sent again.
#[test]
fn everybody_who_comes_to_a_parked_gate_is_served_once_and_in_order() -> anyhow::Result<()> {
    let storm = Storm {
        clients: 800,
        held: 400,
        backlog: 128,
        pace: Duration::from_micros(500),
        patience: Duration::from_secs(40),
    };
    let summary = storm.run()?;
    println!("{summary}");
    Ok(())
}
