//! How connections end: every end that a connection can have, by every way that bytes can go. Each
//! cell checks the bytes both ways, what each side sees and that it sees it at once, how the
//! proxies call it, and that nothing of the connection is left in them.

mod cases;
mod way;

use anyhow::{Context as _, ensure};
use rehome_tests::proxy::PATIENCE;
use rehome_tests::wait::wait_until;

use cases::CASES;
use way::{Ends, Link, Means, Proxies, Stage, Way};

#[test]
fn bytes_that_are_copied() -> anyhow::Result<()> {
    play(Way {
        means: Means::Copy,
        link: Link::None,
        proxies: Proxies::Stay,
    })
}

#[test]
fn bytes_that_are_spliced() -> anyhow::Result<()> {
    play(Way {
        means: Means::Splice,
        link: Link::None,
        proxies: Proxies::Stay,
    })
}

#[test]
fn bytes_that_are_copied_over_a_plain_trunk() -> anyhow::Result<()> {
    play(Way {
        means: Means::Copy,
        link: Link::Plain,
        proxies: Proxies::Stay,
    })
}

#[test]
fn bytes_that_are_spliced_over_a_plain_trunk() -> anyhow::Result<()> {
    play(Way {
        means: Means::Splice,
        link: Link::Plain,
        proxies: Proxies::Stay,
    })
}

#[test]
fn bytes_that_are_copied_over_a_sealed_trunk() -> anyhow::Result<()> {
    play(Way {
        means: Means::Copy,
        link: Link::Sealed,
        proxies: Proxies::Stay,
    })
}

#[test]
fn bytes_that_were_copied_before_a_handover() -> anyhow::Result<()> {
    play(Way {
        means: Means::Copy,
        link: Link::None,
        proxies: Proxies::HandOver,
    })
}

#[test]
fn bytes_that_were_spliced_before_a_handover() -> anyhow::Result<()> {
    play(Way {
        means: Means::Splice,
        link: Link::None,
        proxies: Proxies::HandOver,
    })
}

#[test]
fn bytes_over_a_trunk_of_which_both_ends_hand_over() -> anyhow::Result<()> {
    play(Way {
        means: Means::Splice,
        link: Link::Plain,
        proxies: Proxies::HandOver,
    })
}

/// A column of the matrix: the proxies stay, so that what one cell leaves is seen in the next.
fn play(way: Way) -> anyhow::Result<()> {
    let stage = Stage::set(way)?;
    let mut wrong = Vec::new();
    for case in CASES {
        let (before, pids) = (stage.ends()?, stage.pids()?);
        let played = (case.play)(&stage)
            .and_then(|()| stage.nothing_is_left())
            .and_then(|()| {
                // A process counts what ends in it.
                let mut wanted = if stage.pids()? == pids {
                    before
                } else {
                    before.into_keys().map(|end| (end, 0)).collect()
                };
                for _ in stage.proxies() {
                    for end in case.ends {
                        *wanted.entry(end).or_default() += 1;
                    }
                }
                let mut found = Ends::new();
                // An end is counted when nothing is left of it.
                wait_until("ends are counted", PATIENCE, || {
                    found = stage.ends()?;
                    Ok(found == wanted)
                })
                .with_context(|| format!("ends are {found:?}, not {wanted:?}"))
            });
        if let Err(error) = played.context(case.name) {
            wrong.push(format!("{way:?}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
