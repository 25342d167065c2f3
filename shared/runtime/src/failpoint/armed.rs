//! The points of the binaries that tests of crashes run.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};

/// Where a test says what happens, unless the variable names another directory: a test without
/// hosts of its own has one.
#[cfg(feature = "failpoints")]
const DIRECTORY: &str = "/run/rehome/failpoints";

#[cfg(feature = "failpoints")]
const ELSEWHERE: &str = "REHOME_FAILPOINTS";

/// A test that died must not hold a daemon for ever.
const LONGEST_HOLD: Duration = Duration::from_mins(1);

/// Between two looks at the file that holds a point.
const LOOK: Duration = Duration::from_millis(2);

/// Does at this point what a test asked for. Blocks.
#[cfg(feature = "failpoints")]
pub fn hit(name: impl FnOnce() -> String) {
    let directory = std::env::var_os(ELSEWHERE).unwrap_or_else(|| DIRECTORY.into());
    let directory = Path::new(&directory);
    if directory.is_dir() {
        obey(directory, &name(), die);
    }
}

/// As [`hit`], where nothing may block.
///
/// # Cancel safety
/// A dropped call leaves a thread that waits for as long as the point is held.
#[cfg(feature = "failpoints")]
pub async fn reach(name: impl FnOnce() -> String) {
    let name = name();
    // It fails only when the daemon is stopping.
    drop(tokio::task::spawn_blocking(move || hit(|| name)).await);
}

/// Does what the file of a point says; `die` does not return in a daemon.
fn obey(directory: &Path, name: &str, die: impl FnOnce()) {
    let file = name.replace('/', "__");
    let order = directory.join(&file);
    let Ok(verb) = fs::read_to_string(&order) else {
        return;
    };
    tracing::info!(failpoint = name, verb = verb.trim(), "a fail point is hit");
    if let Err(error) = fs::write(directory.join(format!("{file}.hit")), "") {
        tracing::error!(%error, failpoint = name, "a fail point cannot say that it was hit");
        return;
    }
    match verb.trim() {
        "kill" => {
            // Once: the daemon comes by here again when it has recovered.
            drop(fs::remove_file(&order));
            die();
        }
        "hold" => {
            let deadline = Instant::now() + LONGEST_HOLD;
            while order.exists() && Instant::now() < deadline {
                thread::park_timeout(LOOK);
            }
        }
        _ => tracing::error!(
            failpoint = name,
            verb,
            "a fail point does not know this verb"
        ),
    }
}

/// Ends this process as `kill -9` does: nothing of it runs any more.
#[cfg_attr(
    not(feature = "failpoints"),
    expect(dead_code, reason = "the tests of this module do not die")
)]
fn die() {
    if let Err(error) = kill_process(getpid(), Signal::KILL) {
        tracing::error!(%error, "this process cannot kill itself");
    }
    loop {
        thread::park_timeout(LONGEST_HOLD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "journal/source/released/after";
    const FILE: &str = "journal__source__released__after";

    #[test]
    fn a_point_without_an_order_is_passed() {
        let directory = tempfile::tempdir().unwrap();
        obey(directory.path(), NAME, || {
            panic!("it died without an order")
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_order_to_die_is_obeyed_once() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "kill\n").unwrap();
        let mut deaths = 0;
        obey(directory.path(), NAME, || deaths += 1);
        obey(directory.path(), NAME, || deaths += 1);
        assert_eq!(deaths, 1);
        assert!(directory.path().join(format!("{FILE}.hit")).exists());
    }

    #[test]
    fn a_held_point_says_so_and_goes_on_when_it_is_let_go() {
        let directory = tempfile::tempdir().unwrap();
        let order = directory.path().join(FILE);
        fs::write(&order, "hold").unwrap();
        let hit = directory.path().join(format!("{FILE}.hit"));
        thread::scope(|scope| {
            let held = scope.spawn(|| obey(directory.path(), NAME, || panic!("held, not killed")));
            while !hit.exists() {
                thread::yield_now();
            }
            assert!(!held.is_finished());
            fs::remove_file(&order).unwrap();
            held.join().unwrap();
        });
    }
}
