//! A limit on the processor time of a control group, of version 1 or 2.
//!
//! The limit lives in the group and goes with it: it is never part of what an instance is made
//! of, so an instance that starts again runs free.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::Cpus;

/// The usual stretch of time that a limit is counted over, in microseconds.
const PERIOD: u64 = 100_000;

/// The longest one that the kernel takes.
const LONGEST: u64 = 1_000_000;

/// The least time in a stretch that the kernel takes.
const LEAST: u64 = 1000;

/// The file of version 2: time and stretch.
const V2: &str = "cpu.max";

/// The files of version 1.
const V1_TIME: &str = "cpu.cfs_quota_us";
const V1_PERIOD: &str = "cpu.cfs_period_us";

/// Why a group is not held.
#[derive(Debug, thiserror::Error)]
pub(super) enum QuotaError {
    /// None of its directories has the files.
    #[error("its control group has no controller for the processor")]
    NoController,
    /// The kernel refuses.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Holds the group that these directories are (one in each hierarchy) to so much, or lets it run
/// free. A group that is not there runs free. Blocks for a moment.
pub(super) fn set(directories: &[PathBuf], cpus: Option<Cpus>) -> Result<(), QuotaError> {
    let group = |file: &str| directories.iter().find(|path| path.join(file).exists());
    let limit = cpus.map(time_and_period);
    if let Some(group) = group(V2) {
        let value = match limit {
            Some((time, period)) => format!("{time} {period}"),
            None => format!("max {PERIOD}"),
        };
        return write(group.join(V2), &value);
    }
    let Some(group) = group(V1_TIME) else {
        return limit.map_or(Ok(()), |_| Err(QuotaError::NoController));
    };
    // Between two limits it runs free for a moment: one with the other's period may be refused.
    write(group.join(V1_TIME), "-1")?;
    let (time, period) = limit.unzip();
    write(group.join(V1_PERIOD), &period.unwrap_or(PERIOD).to_string())?;
    time.map_or(Ok(()), |time| write(group.join(V1_TIME), &time.to_string()))
}

/// A group that went away meanwhile holds nothing.
fn write(path: PathBuf, value: &str) -> Result<(), QuotaError> {
    match fs::write(&path, value) {
        Err(source) if path.exists() => Err(QuotaError::Write { path, source }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Microseconds of processor time in a stretch of so many. Very little is given over a longer
/// stretch, because the kernel takes no shorter time.
fn time_and_period(Cpus(cpus): Cpus) -> (u64, u64) {
    let over = |period: u32| {
        #[expect(
            clippy::as_conversions,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "std has no other conversion; it saturates, and what is below is raised next"
        )]
        let time = (cpus * f64::from(period)) as u64;
        time
    };
    match over(100_000) {
        time if time >= LEAST => (time, PERIOD),
        _ => (over(1_000_000).max(LEAST), LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_time_is_given_over_a_longer_stretch() {
        assert_eq!(time_and_period(Cpus(1.5)), (150_000, 100_000));
        assert_eq!(time_and_period(Cpus(0.01)), (1000, 100_000));
        assert_eq!(time_and_period(Cpus(0.004)), (4000, 1_000_000));
        assert_eq!(time_and_period(Cpus(0.0)), (1000, 1_000_000));
        assert_eq!(time_and_period(Cpus(-1.0)), (1000, 1_000_000));
        assert_eq!(time_and_period(Cpus(f64::NAN)), (1000, 1_000_000));
    }

    #[test]
    fn either_version_is_held_and_let_go() {
        let root = tempfile::tempdir().unwrap();
        let (v1, v2) = (root.path().join("cpu"), root.path().join("unified"));
        for (group, files) in [(&v1, &[V1_TIME, V1_PERIOD][..]), (&v2, &[V2][..])] {
            fs::create_dir(group).unwrap();
            for file in files {
                fs::write(group.join(file), "").unwrap();
            }
        }
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        for (cpus, time, period, both) in [
            (Some(Cpus(0.5)), "50000", "100000", "50000 100000"),
            (Some(Cpus(0.005)), "5000", "1000000", "5000 1000000"),
            (None, "-1", "100000", "max 100000"),
        ] {
            set(std::slice::from_ref(&v1), cpus).unwrap();
            assert_eq!(read(v1.join(V1_TIME)), time);
            assert_eq!(read(v1.join(V1_PERIOD)), period);
            set(std::slice::from_ref(&v2), cpus).unwrap();
            assert_eq!(read(v2.join(V2)), both);
        }
    }

    #[test]
    fn without_the_controller_there_is_nothing_to_let_go_and_no_way_to_hold() {
        let root = tempfile::tempdir().unwrap();
        let group = [root.path().to_owned(), root.path().join("gone")];
        set(&group, None).unwrap();
        set(&[], None).unwrap();
        let refused = set(&group, Some(Cpus(1.0)));
        assert!(
            matches!(refused, Err(QuotaError::NoController)),
            "{refused:?}"
        );
    }
}
