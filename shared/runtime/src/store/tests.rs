use std::collections::BTreeMap;

use super::*;

type Routes = BTreeMap<String, u64>;

fn routes(n: u64) -> Routes {
    (0..n).map(|i| (format!("route-{i}"), i)).collect()
}

#[tokio::test]
async fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes");
    save(&path, &routes(3)).await.unwrap();
    save(&path, &routes(2)).await.unwrap();
    assert_eq!(load::<Routes>(&path).await.unwrap(), routes(2));
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no temporary file remains"
    );
}

#[test]
fn absent_is_not_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes");
    assert!(matches!(
        load_blocking::<Routes>(&path),
        Err(LoadError::Absent { .. })
    ));
    fs::write(&path, "").unwrap();
    assert!(matches!(
        load_blocking::<Routes>(&path),
        Err(LoadError::Corrupt { .. })
    ));
}

#[test]
fn every_truncation_and_every_changed_byte_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes");
    save_blocking(&path, &routes(4)).unwrap();
    let good = fs::read(&path).unwrap();
    for length in 0..good.len() {
        assert!(
            decode::<Routes>(&good[..length]).is_err(),
            "cut at {length}"
        );
    }
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 0x20;
        assert!(decode::<Routes>(&bad).is_err(), "changed at {place}");
    }
    assert_eq!(decode::<Routes>(&good), Ok(routes(4)));
}

#[test]
fn a_value_of_another_form_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes");
    save_blocking(&path, "text").unwrap();
    let error = load_blocking::<Routes>(&path).unwrap_err();
    assert!(matches!(error, LoadError::Corrupt { .. }), "{error}");
}

#[test]
fn a_failed_replace_keeps_the_old_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gone").join("routes");
    let error = save_blocking(&path, &routes(1)).unwrap_err();
    assert!(matches!(error, SaveError::Io { .. }));
    // A directory in the place of the file cannot be renamed over.
    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    assert!(save_blocking(&taken, &routes(1)).is_err());
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no temporary file remains"
    );
}

#[test]
fn leftovers_of_a_crash_are_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes");
    save_blocking(&path, &routes(1)).unwrap();
    fs::write(dir.path().join(".routes.Ab12.new"), "half").unwrap();
    fs::write(dir.path().join(".other.Ab12.new"), "not ours").unwrap();
    remove_leftovers(&path).unwrap();
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [".other.Ab12.new", "routes"]);
}
