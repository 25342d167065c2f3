//! Time limits that are fair where this machine does not run this process for a while.
//!
//! The runtime looks at its sockets and then at its clock. After a halt between the two a limit is
//! over although what was waited for has come. So who notices late that a time is over waits a
//! moment more, in which the sockets are looked at.

use std::time::{Duration, Instant};

/// Later than a clock is on a machine that runs this process, and enough for another look.
const LATE: Duration = Duration::from_millis(50);

/// Waits until then.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn sleep_until(at: Instant) {
    tokio::time::sleep_until(at.into()).await;
    if at.elapsed() >= LATE {
        tokio::time::sleep(LATE).await;
    }
}

/// Waits for so long.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn sleep(time: Duration) {
    sleep_until(Instant::now() + time).await;
}

/// What comes within this time; `None` when nothing does.
///
/// # Cancel safety
/// That of `what`.
pub(crate) async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Option<T> {
    // The loser is dropped.
    tokio::select! {
        biased;
        came = what => Some(came),
        () = sleep(limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    /// An answer that is on its way takes another look at the sockets, for which there was no time.
    #[tokio::test]
    async fn what_was_on_its_way_while_nobody_ran_is_not_late() {
        let limit = Duration::from_millis(20);
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let asks = async {
            near.write_all(b"?").await.unwrap();
            near.read_u8().await.unwrap()
        };
        let answers = async {
            assert_eq!(far.read_u8().await.unwrap(), b'?');
            far.write_all(b"!").await.unwrap();
        };
        // It holds up the only thread.
        let halts = async {
            let until = Instant::now() + 4 * limit;
            while Instant::now() < until {
                std::thread::yield_now();
            }
        };
        let (answer, (), ()) = tokio::join!(within(limit, asks), answers, halts);
        assert_eq!(answer, Some(b'!'));
        assert_eq!(within(limit, pending::<()>()).await, None);
    }
}
