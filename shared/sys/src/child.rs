//! Children that do not outlive their parent.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Makes the kernel kill the child when the thread that spawns it ends, whatever the reason.
///
/// A parent that is killed between its `fork` and this call in the child goes unnoticed: a child
/// that must not run then needs a handshake, for example a byte read from a pipe of the parent.
pub fn kill_with_parent(command: &mut Command) {
    // SAFETY: the closure runs in the child between fork and exec. It makes a single prctl(2)
    // through a direct system call: it takes no lock and allocates nothing, and it touches no
    // memory of the parent.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::kill_with_parent;

    #[test]
    fn a_child_ends_with_the_thread_that_spawned_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("cat");
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            kill_with_parent(&mut command);
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        // Its input stays open, so that only the signal can end it: reading its output returns
        // when it is gone.
        let input = child.stdin.take();
        let mut output = child.stdout.take().unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let read = output.read_to_end(&mut Vec::new());
            done.send(read.is_ok())
        });
        assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(true));
        drop(input);
        assert_eq!(child.wait().unwrap().code(), None);
    }
}
