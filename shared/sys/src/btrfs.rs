//! What the kernel knows of a btrfs subvolume, without a line of text to parse.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl, opcode};

/// `struct btrfs_ioctl_get_subvol_info_args` of `linux/btrfs.h`.
#[repr(C)]
#[derive(Debug)]
struct RawInfo {
    treeid: u64,
    name: [u8; 256],
    parent_id: u64,
    dirid: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    transids: [u64; 4],
    times: [RawTime; 4],
    reserved: [u64; 8],
}

/// `struct btrfs_ioctl_timespec`.
#[repr(C)]
#[derive(Debug)]
struct RawTime {
    seconds: u64,
    nanoseconds: u32,
}

/// `BTRFS_IOC_GET_SUBVOL_INFO`, since Linux 4.18.
const GET_SUBVOL_INFO: Opcode = opcode::read::<RawInfo>(0x94, 60);

/// `BTRFS_ROOT_SUBVOL_RDONLY`, as the on-disk flags count it.
const READ_ONLY: u64 = 1;

/// What the kernel knows of a subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubvolumeInfo {
    /// Its number in this file system; later subvolumes have larger ones.
    pub id: u64,
    /// Its own UUID.
    pub uuid: String,
    /// The UUID of what it was received as, when it was received completely.
    pub received_uuid: Option<String>,
    /// Whether it is read-only.
    pub read_only: bool,
    /// The file system's generation when it last changed; a snapshot's when it was taken.
    pub generation: u64,
}

/// Asks for the subvolume that an open file or directory lies in.
///
/// # Errors
/// The kernel's: `ENOTTY` when this is not btrfs.
pub fn subvolume_info(inside: impl AsFd) -> io::Result<SubvolumeInfo> {
    // SAFETY: the number is that of BTRFS_IOC_GET_SUBVOL_INFO, whose only effect is to fill the
    // structure that `RawInfo` mirrors field by field (checked by its size, which the number
    // contains and the kernel compares); every bit pattern is a valid `RawInfo`.
    let getter = unsafe { Getter::<GET_SUBVOL_INFO, RawInfo>::new() };
    // SAFETY: the getter passes a pointer to memory of its own of the right size, which lives
    // through the call; a file system that does not know the number answers ENOTTY and writes
    // nothing.
    let raw = unsafe { ioctl(inside, getter) }?;
    Ok(SubvolumeInfo {
        id: raw.treeid,
        uuid: uuid_text(&raw.uuid),
        received_uuid: (raw.received_uuid != [0; 16]).then(|| uuid_text(&raw.received_uuid)),
        read_only: raw.flags & READ_ONLY != 0,
        generation: raw.generation,
    })
}

fn uuid_text(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (position, byte) in bytes.iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a String cannot fail.
        let _never_fails = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_size_that_the_kernel_expects() {
        assert_eq!(size_of::<RawInfo>(), 504);
    }

    #[test]
    fn another_file_system_is_refused() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(subvolume_info(&proc).unwrap_err().raw_os_error(), Some(25));
    }

    #[test]
    fn a_uuid_has_its_usual_form() {
        let bytes = [
            0x34, 0x8e, 0x59, 0xe3, 0xe3, 0xa6, 0xef, 0x4e, 0xba, 0xb5, 0x37, 0xd2, 0x9f, 0x74,
            0x52, 0x75,
        ];
        assert_eq!(uuid_text(&bytes), "348e59e3-e3a6-ef4e-bab5-37d29f745275");
    }
}
