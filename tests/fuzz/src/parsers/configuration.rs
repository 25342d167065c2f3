//! The files that people write: those of the cluster and of the two daemons. A zero byte parts the
//! application file from the deployment file.

use rehome_shared::config::daemon::{migrated_config, proxyd_config};
use rehome_shared::config::meaning::meaning;
use rehome_shared::config::problem::render;
use rehome_shared::config::{Problem, Source, load};

/// Runs the target.
///
/// # Panics
/// When something is wrong.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (first, second) = text.split_once('\0').unwrap_or((&text, ""));
    let (one, two) = (Source::new("a.yml", first), Source::new("b.yml", second));
    for loaded in [load(&one, None), load(&one, Some(&two))] {
        match loaded {
            Ok(loaded) => assert!(meaning(&loaded).is_object(), "no meaning"),
            Err(problems) => refused(&problems, &[&one, &two]),
        }
    }
    if let Err(problems) = migrated_config(&one) {
        refused(&problems, &[&one]);
    }
    if let Err(problems) = proxyd_config(&one) {
        refused(&problems, &[&one]);
    }
}

/// There is a reason, and it points into the files.
fn refused(problems: &[Problem], files: &[&Source]) {
    assert!(!problems.is_empty(), "refused without a problem");
    for problem in problems {
        let file = files.iter().find(|file| file.name == problem.file);
        let lines = file.map(|file| file.text.lines().count() + 1);
        assert!(
            lines.is_some_and(|lines| (1..=lines).contains(&problem.line)),
            "{problem} points nowhere"
        );
    }
    assert_eq!(
        render(problems).lines().count(),
        problems.len(),
        "a problem has two lines"
    );
}
