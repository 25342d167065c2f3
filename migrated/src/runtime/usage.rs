//! What processes have used, as the kernel counts it for each: on every host alike, whatever
//! control groups it has.

use std::fs;
use std::time::Duration;

use rehome_shared::units::Bytes;

use super::Usage;

/// The sum over these processes and their children that have ended. One that ends meanwhile, or
/// that may not be looked at, counts for nothing. Blocks for a moment.
pub(super) fn of(processes: impl IntoIterator<Item = u32>) -> Usage {
    let ticks = rustix::param::clock_ticks_per_second();
    let mut sum = Usage::default();
    for process in processes {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
        let cpu = ticks_of(&read("stat")).unwrap_or_default();
        sum.cpu = sum.cpu.saturating_add(time_of(cpu, ticks));
        let written = written_of(&read("io")).unwrap_or_default();
        sum.written = sum.written.saturating_add(Bytes(written));
    }
    sum
}

fn time_of(count: u64, per_second: u64) -> Duration {
    let nanos = u128::from(count) * 1_000_000_000 / u128::from(per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Of `/proc/PID/stat`: its own time and that of its children that have ended, in user and kernel
/// mode. The second field is a name in parentheses, in which anything may stand.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let times = rest.split_whitespace().skip(11).take(4);
    times
        .map(|field| field.parse::<u64>().ok())
        .try_fold(0_u64, |sum, time| Some(sum.saturating_add(time?)))
}

/// Of `/proc/PID/io`: bytes that became dirty in the page cache, also through mmap.
fn written_of(io: &str) -> Option<u64> {
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let stat = "7 (a ) b (c) S 1 7 7 0 -1 4194560 10 20 0 0 100 20 3 4 20 0 1 0 5 6 7";
        assert_eq!(ticks_of(stat), Some(127));
        assert_eq!(ticks_of(""), None);
        assert_eq!(time_of(250, 100), Duration::from_millis(2500));
    }

    #[test]
    fn bytes_are_those_that_go_to_file_systems() {
        let io = "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n";
        assert_eq!(written_of(io), Some(4096));
        assert_eq!(written_of("rchar: 1\n"), None);
    }

    #[test]
    fn what_works_uses_the_processor_and_what_is_gone_uses_nothing() {
        let before = of([process::id()]);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let mut work = 0_u64;
        while of([process::id()]).cpu <= before.cpu {
            assert!(std::time::Instant::now() < deadline, "{work}");
            work = (0..100_000_u64).fold(work, |sum, next| sum.wrapping_mul(31) ^ next);
        }
        assert_eq!(of([u32::MAX]), Usage::default());
    }
}
