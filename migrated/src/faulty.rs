//! `migrated-faulty`: the daemon with fail points, for the tests of crashes.

#![forbid(unsafe_code)]

#[path = "main.rs"]
mod daemon;

fn main() -> std::process::ExitCode {
    daemon::main()
}
