//! The program `btrfs`: the one place that runs it to its end and reads what it says.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rehome_runtime::command::{CommandError, ExternalCommand};
use rehome_runtime::report::Report;
use rehome_shared::units::Bytes;

use crate::storage::StorageError;

/// How long one operation on a subvolume may take: each waits for a commit of the file system,
/// which on a busy disk can take many seconds.
const PATIENCE: Duration = Duration::from_mins(2);

/// How long the receiver may take after the last byte of a stream.
pub(super) const RECEIVE_END: Duration = Duration::from_mins(5);

/// Makes calls of the program.
#[derive(Debug)]
pub(super) struct Btrfs;

impl Btrfs {
    #[expect(
        clippy::new_ret_no_self,
        reason = "it names the program that the command runs"
    )]
    pub(super) fn new() -> ExternalCommand {
        ExternalCommand::new("btrfs")
    }
}

/// Runs it to its end.
pub(super) async fn run(command: ExternalCommand) -> Result<(), StorageError> {
    match command.run(PATIENCE).await {
        Ok(_said) => Ok(()),
        Err(error) => Err(failure(error, Bytes(0))),
    }
}

/// What a failure means. `btrfs` has one exit status for all, so its text decides; the C locale
/// that the command wrapper sets keeps the text as it is here.
pub(super) fn failure(error: CommandError, needed: Bytes) -> StorageError {
    match error {
        CommandError::Failed { argv, stderr, .. } => {
            let says = |text: &str| stderr.contains(text);
            if says("No space left on device") || says("Disk quota exceeded") {
                let what = "the data of a volume".to_owned();
                return StorageError::NoSpace {
                    what,
                    needed,
                    available: Bytes(0),
                };
            }
            if says("cannot find parent subvolume") {
                return StorageError::BaseMissing("of the stream".to_owned());
            }
            StorageError::Command {
                command: argv.to_string(),
                stderr,
            }
        }
        CommandError::Start { argv, source } => StorageError::Io {
            attempt: format!("start `{argv}` (package btrfs-progs)"),
            source,
        },
        CommandError::Io { ref argv, .. }
        | CommandError::Timeout { ref argv, .. }
        | CommandError::TooLong { ref argv } => {
            let command = argv.to_string();
            StorageError::Command {
                command,
                stderr: Report(&error).to_string(),
            }
        }
    }
}

/// What the subvolumes of a pool refer to, and what of that nothing else does.
#[derive(Debug, Default)]
pub(super) struct Usage(HashMap<u64, (u64, u64)>);

impl Usage {
    /// The bytes that a subvolume refers to; 0 when it is not known.
    pub(super) fn of(&self, id: u64) -> Bytes {
        Bytes(self.0.get(&id).copied().unwrap_or_default().0)
    }

    /// The bytes that are free again without it; 0 when it is not known.
    pub(super) fn exclusive(&self, id: u64) -> Bytes {
        Bytes(self.0.get(&id).copied().unwrap_or_default().1)
    }

    /// Reads the table of `btrfs qgroup show --raw`: `0/ID REFERENCED EXCLUSIVE`.
    fn parse(text: &str) -> Self {
        let row = |line: &str| {
            let mut columns = line.split_whitespace();
            let id = columns.next()?.strip_prefix("0/")?.parse().ok()?;
            let referenced = columns.next()?.parse().ok()?;
            Some((id, (referenced, columns.next()?.parse().ok()?)))
        };
        Self(text.lines().filter_map(row).collect())
    }
}

/// Reads the usage of a pool. It is for people to see, so a pool whose quotas somebody switched
/// off is logged and shows nothing.
pub(super) async fn usage(pool: &Path) -> Usage {
    let command = Btrfs::new().args(["qgroup", "show", "--raw"]).arg(pool);
    match command.run(PATIENCE).await {
        Ok(output) => Usage::parse(&output.text()),
        Err(error) => {
            tracing::warn!(pool = %pool.display(), error = %Report(&error), "cannot read the usage of volumes");
            Usage::default()
        }
    }
}

/// Bytes of files in a subvolume that were written in this generation or a later one.
pub(super) async fn written_since(
    subvolume: &Path,
    generation: u64,
) -> Result<Bytes, StorageError> {
    let command = Btrfs::new()
        .args(["subvolume", "find-new"])
        .arg(subvolume)
        .arg(generation.to_string());
    match command.run(PATIENCE).await {
        Ok(output) => Ok(sum_of_extents(&output.text())),
        Err(error) => Err(failure(error, Bytes(0))),
    }
}

/// Reads what `btrfs subvolume find-new` prints: one line for each extent, with `len BYTES`.
fn sum_of_extents(text: &str) -> Bytes {
    let length = |line: &str| {
        let mut words = line.strip_prefix("inode ")?.split(' ');
        words.find(|word| *word == "len")?;
        words.next()?.parse::<u64>().ok()
    };
    let lengths = text.lines().filter_map(length);
    lengths.fold(Bytes(0), |sum, length| sum.saturating_add(Bytes(length)))
}

/// Switches quotas on; on is fine.
pub(super) async fn enable_quotas(pool: &Path) -> Result<(), CommandError> {
    Btrfs::new()
        .args(["quota", "enable"])
        .arg(pool)
        .run(PATIENCE)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_summed_up() {
        let text = "inode 257 file offset 0 len 4096 disk start 13631488 offset 0 gen 9 flags NONE len\n\
                    inode 258 file offset 4096 len 100 disk start 0 offset 0 gen 9 flags INLINE a len 7 b\n\
                    transid marker was 9\n";
        assert_eq!(sum_of_extents(text), Bytes(4196));
        assert_eq!(sum_of_extents("transid marker was 9\n"), Bytes(0));
    }

    #[test]
    fn usage_is_read_from_old_and_new_tables() {
        let old = "qgroupid         rfer         excl \n--------         ----         ---- \n\
                   0/5             16384        16384 \n0/256        30019584        16384 \n1/1 7 7\n";
        let new = "Qgroupid    Referenced    Exclusive   Path \n--------    ----------    ---------   ---- \n\
                   0/256         30019584        16384   y/n\n";
        for text in [old, new] {
            assert_eq!(Usage::parse(text).of(256), Bytes(30_019_584));
            assert_eq!(Usage::parse(text).exclusive(256), Bytes(16384));
            assert_eq!(Usage::parse(text).of(1), Bytes(0));
        }
    }
}
