//! A short soak, always the same one. `make soak-proxy` runs longer ones, each with a new seed.

use std::time::Duration;

use rehome_tests::proxy::soak::Soak;

#[test]
fn clients_notice_nothing_but_time_whatever_happens_to_proxies() -> anyhow::Result<()> {
    let soak = Soak {
        seed: 7,
        length: Duration::from_secs(20),
    };
    println!("{}", soak.run()?);
    Ok(())
}
