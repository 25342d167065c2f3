//! A short soak, always the same one. `make soak` runs longer ones, each with a new seed.

#![forbid(unsafe_code)]

use std::time::Duration;

use rehome_tests::soak::Soak;

#[test]
fn no_acknowledged_record_is_lost_while_everything_breaks() -> anyhow::Result<()> {
    let soak = Soak {
        seed: 3,
        length: Duration::from_secs(25),
    };
    soak.run().map(drop)
}
