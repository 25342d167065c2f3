//! Connections with traffic both ways, of which every byte is checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rehome_shared::api::proxy::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::app::raw;

/// Sends back whatever comes, until its end.
pub(crate) async fn echo() -> Result<(Target, JoinSet<()>)> {
    let (listener, target) = raw().await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                // What goes wrong, the client sees.
                drop(tokio::io::copy(&mut read, &mut write).await);
                drop(write.shutdown().await);
            });
        }
    });
    Ok((target, tasks))
}

/// Talks until told to stop; every byte must come back. Answers how many there were.
pub(crate) async fn talk(
    stream: TcpStream,
    seed: u64,
    pause: Duration,
    stop: Arc<AtomicBool>,
) -> Result<u64> {
    let (mut read, mut write) = stream.into_split();
    let writes = async {
        let (mut state, mut sent, mut hash) = (seed | 1, 0, blake3::Hasher::new());
        let mut piece = vec![0; 48 << 10];
        while !stop.load(Ordering::Relaxed) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let length = usize::try_from(state % (48 << 10))? + 1;
            let piece = piece.get_mut(..length).context("too long")?;
            for (place, byte) in (0_u64..).zip(piece.iter_mut()) {
                *byte = state.wrapping_mul(place | 1).to_le_bytes()[5];
            }
            write.write_all(piece).await?;
            hash.update(piece);
            sent += u64::try_from(length)?;
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
        write.shutdown().await?;
        anyhow::Ok((sent, hash.finalize()))
    };
    let reads = async {
        let (mut heard, mut hash) = (0, blake3::Hasher::new());
        let mut piece = vec![0; 64 << 10];
        loop {
            let length = read.read(&mut piece).await?;
            if length == 0 {
                return anyhow::Ok((heard, hash.finalize()));
            }
            hash.update(piece.get(..length).context("too long")?);
            heard += u64::try_from(length)?;
        }
    };
    let (sent, heard) = tokio::try_join!(writes, reads)?;
    ensure!(sent == heard, "{} of {} bytes came back", heard.0, sent.0);
    Ok(sent.0)
}
