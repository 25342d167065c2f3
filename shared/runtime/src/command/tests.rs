use std::time::Instant;

use super::*;

const SOON: Duration = Duration::from_secs(10);

fn shell(script: &str) -> ExternalCommand {
    ExternalCommand::new("sh").arg("-c").arg(script)
}

/// Whether a process runs; a zombie does not.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.starts_with(" Z"))
    })
}

async fn ends(pid: &str) -> bool {
    let deadline = Instant::now() + SOON;
    while runs(pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    !runs(pid)
}

#[tokio::test]
async fn output_and_input_pass_through() {
    let output = ExternalCommand::new("cat")
        .input(vec![b'x'; 300_000])
        .run(SOON)
        .await
        .unwrap();
    assert_eq!(output.stdout.len(), 300_000);
    let output = shell("echo out; echo err >&2").run(SOON).await.unwrap();
    assert_eq!(
        (output.text().as_str(), output.stderr.as_str()),
        ("out", "err")
    );
}

#[tokio::test]
async fn a_failure_keeps_argv_status_and_the_end_of_stderr() {
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; exit 3";
    let error = shell(script).run(SOON).await.unwrap_err();
    let CommandError::Failed {
        argv,
        status,
        stderr,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(status.code(), Some(3));
    assert!(argv.to_string().starts_with("sh -c i=0;"));
    assert!(
        stderr.ends_with("line 1999") && stderr.len() <= 4096,
        "{stderr}"
    );
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let error = ExternalCommand::new("rehome-no-such-program")
        .run(SOON)
        .await
        .unwrap_err();
    assert!(matches!(error, CommandError::Start { .. }));
    assert_eq!(error.to_string(), "cannot start `rehome-no-such-program`");
}

#[tokio::test]
async fn the_deadline_kills_the_whole_group() {
    let script = "sleep 1000 & echo $! >&2; wait";
    let error = shell(script)
        .run(Duration::from_millis(300))
        .await
        .unwrap_err();
    let CommandError::Timeout { stderr, .. } = &error else {
        panic!("{error}")
    };
    assert!(ends(stderr).await, "the grandchild {stderr} still runs");
}

#[tokio::test]
async fn a_dropped_run_kills_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let run = shell("sleep 1000 & echo $! >\"$FILE\"; wait")
        .env("FILE", &file)
        .run(SOON);
    let mut run = Box::pin(run);
    let deadline = Instant::now() + SOON;
    let pid = loop {
        let _pending = tokio::time::timeout(Duration::from_millis(10), &mut run).await;
        let pid = std::fs::read_to_string(&file).unwrap_or_default();
        if pid.ends_with('\n') {
            break pid.trim().to_owned();
        }
        assert!(Instant::now() < deadline, "the script did not start");
    };
    assert!(runs(&pid));
    drop(run);
    assert!(ends(&pid).await, "the grandchild {pid} still runs");
}

#[tokio::test]
async fn streams_flow_from_one_program_to_another() {
    let mut source = shell("head -c 3000000 /dev/zero; echo sent >&2")
        .start_reading()
        .unwrap();
    let mut sink = shell("wc -c >&2").start_writing().unwrap();
    let (mut from, mut to) = (source.take_stdout().unwrap(), sink.take_stdin().unwrap());
    tokio::io::copy(&mut from, &mut to).await.unwrap();
    drop(to);
    assert_eq!(source.finish(SOON).await.unwrap(), "sent");
    assert_eq!(sink.finish(SOON).await.unwrap(), "3000000");
}

#[tokio::test]
async fn a_program_that_ignores_its_input_is_judged_by_its_status() {
    shell("exec 0<&-; exit 0")
        .input(vec![0; 1 << 20])
        .run(SOON)
        .await
        .unwrap();
    let error = shell("exec 0<&-; exit 1")
        .input(vec![0; 1 << 20])
        .run(SOON)
        .await
        .unwrap_err();
    assert!(matches!(error, CommandError::Failed { .. }));
}
