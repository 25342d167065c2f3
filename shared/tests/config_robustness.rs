//! No text makes the configuration code panic, hang or point outside the file.

use proptest::prelude::*;
use rehome_shared::config::daemon::{migrated_config, proxyd_config};
use rehome_shared::config::meaning::meaning;
use rehome_shared::config::{Problem, Source, load};

const SEEDS: [&str; 9] = [
    include_str!("../../config/tutorial/application.yml"),
    include_str!("../../config/tutorial/fig.yml"),
    include_str!("../../config/tutorial/deployment.yml"),
    include_str!("../../config/migrated.yml"),
    include_str!("../../config/proxyd.yml"),
    "db: {image: acme/db, ports: [\"3306:3306\"], volumes: [/d], environment: [A=b, C]}\n\
     web: {image: acme/web, links: [\"db:database\"], mem_limit: 1000000}\n",
    "version: \"3\"\nservices:\n  db: &db\n    image: postgres:17\n    volumes: [\"data:/var/lib\"]\n\
     \x20   ports: [{target: 5432, published: \"5432\", protocol: tcp}]\n    command: sh -c 'x'\n\
     \x20   healthcheck: {test: [CMD, pg_isready], interval: 5s, start_period: 1m}\n    restart: no\n\
     \x20 web:\n    <<: *db\n    depends_on: {db: {condition: x}}\n    ports: [\"80:80/udp\"]\n\
     volumes:\n  data:\n",
    "version: 1\nnodes:\n  \"fd00::1\": [db, web]\n  h2: []\n",
    "version: 1\napplications:\n  a: &a\n    image: \"r:5000/x@sha256:00\"\n    volumes: [{name: x, mountpoint: /a/../b, maximum_size: 2.1M}]\n\
     \x20   healthcheck: {http: \"80/x\", interval: 1s}\n    restart_policy: {name: on-failure, maximum_retry_count: 3}\n\
     \x20   migration: {hard_cap: 5s, on_stall: wait}\n  b: *a\n",
];

const SNIPPETS: [&str; 28] = [
    ": ",
    "- ",
    "? ",
    "[",
    "]",
    "{",
    "}",
    "\n",
    "\n  ",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "!x ",
    "\"",
    "'",
    "#",
    "|\n",
    ">\n",
    "---\n",
    "...\n",
    "null",
    "1.0",
    "-1",
    "22:22",
    "\t",
    "\u{feff}",
    "é\u{2028}",
];

/// Runs every reader on a text; gives all problems.
fn read_everything(text: &str, other: &str) -> Vec<Problem> {
    let (source, second) = (Source::new("a.yml", text), Source::new("b.yml", other));
    let mut problems = Vec::new();
    for result in [
        load(&source, None),
        load(&source, Some(&second)),
        load(&second, Some(&source)),
    ] {
        match result {
            Ok(loaded) => assert!(meaning(&loaded).is_object()),
            Err(found) => {
                assert!(!found.is_empty(), "refused without a problem");
                problems.extend(found);
            }
        }
    }
    problems.extend(migrated_config(&source).err().unwrap_or_default());
    problems.extend(proxyd_config(&source).err().unwrap_or_default());
    problems
}

fn check(text: &str, other: &str) {
    for problem in read_everything(text, other) {
        let text = if problem.file == "a.yml" { text } else { other };
        // An unfinished value is reported where the text ends, one line after its last.
        let lines = text
            .split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
            .count();
        assert!(
            (1..=lines + 1).contains(&problem.line),
            "{problem:?} in {text:?}"
        );
        assert!(!problem.to_string().contains('\n'), "{problem:?}");
    }
}

/// One change to a text at any place: cut, doubled, replaced or with a snippet put in.
#[derive(Debug, Clone)]
enum Change {
    Remove(usize, usize),
    Insert(usize, &'static str),
    Double(usize, usize),
    Replace(usize, char),
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..2000_usize;
    prop_oneof![
        (at.clone(), 1..40_usize).prop_map(|(at, len)| Change::Remove(at, len)),
        (at.clone(), prop::sample::select(SNIPPETS.to_vec()))
            .prop_map(|(at, s)| Change::Insert(at, s)),
        (at.clone(), 1..60_usize).prop_map(|(at, len)| Change::Double(at, len)),
        (at, any::<char>()).prop_map(|(at, c)| Change::Replace(at, c)),
    ]
}

fn apply(text: &str, change: &Change) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let clamp = |at: usize| at % (chars.len() + 1);
    match *change {
        Change::Remove(at, len) => {
            let at = clamp(at);
            let end = (at + len).min(chars.len());
            chars.drain(at..end);
        }
        Change::Insert(at, snippet) => {
            let at = clamp(at);
            chars.splice(at..at, snippet.chars());
        }
        Change::Double(at, len) => {
            let at = clamp(at);
            let piece: Vec<char> = chars.iter().skip(at).take(len).copied().collect();
            chars.splice(at..at, piece);
        }
        Change::Replace(at, c) => {
            let at = clamp(at);
            if let Some(slot) = chars.get_mut(at) {
                *slot = c;
            }
        }
    }
    chars.into_iter().collect()
}

/// `PROPTEST_CASES` asks for more.
fn settings() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.saturating_mul(2),
        failure_persistence: None,
        ..default
    }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn mutated_files_never_panic(
        seed in prop::sample::select(SEEDS.to_vec()),
        other in prop::sample::select(SEEDS.to_vec()),
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let text = changes.iter().fold(seed.to_owned(), |text, change| apply(&text, change));
        check(&text, other);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        check(&String::from_utf8_lossy(&bytes), SEEDS[0]);
    }

    #[test]
    fn heaps_of_yaml_syntax_never_panic(
        pieces in prop::collection::vec(prop::sample::select(SNIPPETS.to_vec()), 0..60),
    ) {
        check(&pieces.concat(), SEEDS[2]);
    }
}

#[test]
fn the_seeds_are_good_files() {
    for seed in SEEDS {
        let source = Source::new("f", seed);
        let application = load(&source, None).is_ok();
        let deployment = seed.contains("nodes:");
        let daemon = migrated_config(&source).is_ok() || proxyd_config(&source).is_ok();
        let known_bad = seed.contains("sha256:00") || seed.contains("data:/var/lib");
        assert!(application || deployment || daemon || known_bad, "{seed}");
    }
}
