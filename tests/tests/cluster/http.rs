//! An HTTP application with a volume moves: its clients keep their connections.

use anyhow::ensure;
use rehome_tests::deployment::Deployment;
use rehome_tests::lab::{Runtime, with_lab};
use rehome_tests::web;
use rehome_tests::web::client::{Clients, Connection};

const PORT: u16 = 7000;

#[test]
fn clients_of_every_host_keep_their_connections_while_the_application_goes_round()
-> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let deployment = Deployment::new().with("web", 1, &web::body(PORT)?);
        lab.deploy(&deployment)?.ok()?;
        lab.wait_running("web", 1)?;
        let doors = lab.doors(PORT)?;
        let clients = Clients::start(&doors, 12);
        clients.wait_served(60)?;
        for (host, epoch) in [(2, 2), (3, 3), (1, 4)] {
            lab.move_to("web", host)?.ok()?;
            let there = lab.wait_running("web", host)?;
            ensure!(there.epoch == epoch, "{there:?}");
            clients.wait_served(60)?;
            let migration = lab.last_migration()?;
            ensure!(migration.state() == "done", "{migration:?}");
            let connections = &migration.0["connections"];
            ensure!(connections["refused"] == 0, "{migration:?}");
        }
        let (mut words, longest) = clients.stop()?;
        ensure!(longest < rehome_tests::load::PARK_TIMEOUT, "{longest:?}");
        // Every word was acknowledged to its client, and is there once.
        let mut kept: Vec<String> = Connection::open(doors[0])?
            .ask("GET", "/", "")?
            .lines()
            .map(str::to_owned)
            .collect();
        words.sort();
        kept.sort();
        ensure!(words == kept, "{} sent, {} kept", words.len(), kept.len());
        Ok(())
    })
}
