//! Shows progress on standard error: a line for each migration that is redrawn in place on a
//! terminal, and one line for each change elsewhere.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};

use indicatif::{MultiProgress, ProgressBar};
use rehome_shared::api::cluster::{Migration, MigrationState, Progress};
use rehome_shared::ids::MigrationId;

use super::feed::{self, Detail, Feed};
use crate::console::Console;

/// Where the person who waits looks.
#[derive(Debug)]
pub(crate) struct Display {
    console: Console,
    feed: Feed,
    /// On a terminal.
    bars: Option<Bars>,
}

#[derive(Debug, Default)]
struct Bars {
    area: MultiProgress,
    running: BTreeMap<MigrationId, ProgressBar>,
}

impl Display {
    /// Bars when standard error is a terminal, else lines.
    pub(crate) fn new(console: Console) -> Self {
        let bars = io::stderr().is_terminal().then(Bars::default);
        Self {
            console,
            feed: Feed::default(),
            bars,
        }
    }

    /// Shows what is new.
    pub(super) fn show(&mut self, progress: &Progress) {
        let detail = if self.bars.is_some() {
            Detail::Endings
        } else {
            Detail::Phases
        };
        // A bar whose migration has ended goes before the line that says how.
        if let Some(bars) = &mut self.bars {
            bars.update(&progress.migrations);
        }
        for line in self.feed.next(progress, detail) {
            self.say(&line);
        }
    }

    /// One line, above the bars.
    pub(super) fn say(&self, line: &str) {
        match &self.bars {
            None => self.console.progress(line),
            Some(bars) => bars.area.suspend(|| self.console.progress(line)),
        }
    }

    /// Takes the bars away.
    pub(super) fn close(&mut self) {
        if let Some(bars) = &mut self.bars {
            bars.update(&[]);
        }
    }
}

impl Bars {
    /// One bar for each migration that runs.
    fn update(&mut self, migrations: &[Migration]) {
        let runs = |id: &MigrationId| {
            migrations
                .iter()
                .any(|m| m.id == *id && m.state == MigrationState::Running)
        };
        self.running.retain(|id, bar| {
            let keep = runs(id);
            if !keep {
                bar.finish_and_clear();
            }
            keep
        });
        for migration in migrations
            .iter()
            .filter(|m| m.state == MigrationState::Running)
        {
            let bar = self
                .running
                .entry(migration.id.clone())
                .or_insert_with(|| self.area.add(ProgressBar::new_spinner()));
            bar.set_message(feed::line(migration));
            bar.tick();
        }
    }
}
