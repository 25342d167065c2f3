//! What can be tested without a pool; the rest is in `tests/btrfs_storage.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use rehome_shared::ids::DatasetId;
use rehome_shared::units::Bytes;

use super::layout::Layout;
use super::{Btrfs, OpenError, PoolConfig, PoolImage};

fn dataset() -> DatasetId {
    DatasetId::try_new("7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11").unwrap()
}

#[test]
fn no_snapshot_name_leads_outside() {
    let layout = Layout::new(PathBuf::from("/pool"));
    for bad in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        ".hidden",
        "a\0b",
        "a b",
        &"x".repeat(201),
    ] {
        assert!(layout.snapshot(&dataset(), bad).is_err(), "{bad:?}");
    }
    let good = layout.snapshot(&dataset(), "mig-01h-1").unwrap();
    assert_eq!(good, layout.snapshots(&dataset()).join("mig-01h-1"));
}

#[test]
fn foreign_entries_are_no_datasets() {
    assert_eq!(
        Layout::dataset_of("7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11.json"),
        Some(dataset())
    );
    assert_eq!(
        Layout::dataset_of("7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11"),
        Some(dataset())
    );
    for foreign in [".x.new", "lost+found", "notes.txt"] {
        assert_eq!(Layout::dataset_of(foreign), None, "{foreign}");
    }
}

fn config(directory: &Path) -> PoolConfig {
    PoolConfig {
        path: directory.join("pool"),
        image: Some(PoolImage {
            path: directory.join("pool.img"),
            size: Bytes(200 << 20),
        }),
    }
}

#[tokio::test]
async fn an_image_with_other_content_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    fs::write(directory.path().join("pool.img"), "precious").unwrap();
    let refused = Btrfs::open(config).await.unwrap_err();
    assert!(matches!(refused, OpenError::Occupied { .. }), "{refused:?}");
    assert_eq!(
        fs::read_to_string(directory.path().join("pool.img")).unwrap(),
        "precious"
    );
}

#[tokio::test]
async fn a_mount_hides_no_files() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    fs::create_dir(&config.path).unwrap();
    fs::write(config.path.join("mine"), "x").unwrap();
    let refused = Btrfs::open(config).await.unwrap_err();
    assert!(matches!(refused, OpenError::Hides { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_directory_on_another_file_system_needs_an_image() {
    // /proc is never btrfs, whatever the machine's own file system is.
    let config = PoolConfig {
        path: PathBuf::from("/proc/sys"),
        image: None,
    };
    let refused = Btrfs::open(config).await.unwrap_err();
    assert!(matches!(refused, OpenError::NotBtrfs { .. }), "{refused:?}");
}
