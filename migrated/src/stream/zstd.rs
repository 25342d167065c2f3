//! One frame's data, compressed on its own: a frame that is sent again needs no other.

use std::io;

use bytes::Bytes;

/// The fastest level that still finds what is easy to find.
const LEVEL: i32 = 1;

/// Compresses, off the async workers.
pub(super) async fn compress(data: Bytes) -> io::Result<Bytes> {
    blocking(move || ::zstd::bulk::compress(&data, LEVEL)).await
}

/// Decompresses what must become exactly so many bytes, off the async workers. Never allocates
/// more than those.
pub(super) async fn decompress(payload: Bytes, length: usize) -> io::Result<Bytes> {
    let data = blocking(move || ::zstd::bulk::decompress(&payload, length)).await?;
    if data.len() != length {
        let message = format!("{} bytes instead of {length}", data.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(data)
}

async fn blocking(
    work: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
) -> io::Result<Bytes> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(io::Error::other)??.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_compressed_comes_out_again() {
        let data = Bytes::from(b"what is said again and again ".repeat(1000));
        let packed = compress(data.clone()).await.unwrap();
        assert!(packed.len() * 10 < data.len());
        assert_eq!(decompress(packed, data.len()).await.unwrap(), data);
    }

    #[tokio::test]
    async fn more_or_less_than_was_announced_is_refused_and_so_is_noise() {
        let packed = compress(Bytes::from(vec![7; 1000])).await.unwrap();
        assert!(decompress(packed.clone(), 999).await.is_err());
        assert!(decompress(packed, 1001).await.is_err());
        assert!(decompress(Bytes::from(vec![7; 100]), 1000).await.is_err());
    }
}
