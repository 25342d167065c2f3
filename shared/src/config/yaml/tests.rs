use std::fmt::Write as _;

use super::*;

fn read(text: &str) -> Node {
    let (node, problems) = parse(&Source::new("f.yml", text));
    assert_eq!(problems, [], "{text}");
    node.unwrap()
}

fn problems(text: &str) -> Vec<Problem> {
    parse(&Source::new("f.yml", text)).1
}

fn only_problem(text: &str) -> (usize, String) {
    let mut all = problems(text);
    assert_eq!(all.len(), 1, "{text}: {all:?}");
    let problem = all.remove(0);
    (problem.line, problem.message)
}

fn get<'n>(node: &'n Node, key: &str) -> &'n Node {
    let Value::Map(entries) = &node.value else {
        panic!("{node:?} is not a mapping")
    };
    &entries
        .iter()
        .find(|e| e.key.value.scalar_text() == Some(key))
        .unwrap()
        .value
}

#[test]
fn every_value_knows_its_line() {
    let root = read("version: 1\n# a comment\napplications:\n  db:\n    image: x\n");
    let db = get(get(&root, "applications"), "db");
    assert_eq!((root.line, db.line, get(db, "image").line), (1, 5, 5));
}

#[test]
fn unquoted_scalars_follow_the_core_schema() {
    let int = |n, raw: &str| Value::Int(n, raw.to_owned());
    for (text, want) in [
        ("~", Value::Null),
        ("", Value::Null),
        ("true", Value::Bool(true)),
        ("12", int(12, "12")),
        ("-7", int(-7, "-7")),
        ("0", int(0, "0")),
        ("0x1f", int(31, "0x1f")),
        ("0o17", int(15, "0o17")),
        ("1.0", Value::Float("1.0".into())),
        ("1e3", Value::Float("1e3".into())),
        (".5", Value::Float(".5".into())),
        (
            "99999999999999999999999999999999999999999",
            Value::Float("9".repeat(41)),
        ),
        ("1.2.3", Value::Text("1.2.3".into())),
        (".", Value::Text(".".into())),
        ("8080:80", Value::Text("8080:80".into())),
        ("22:22", Value::Ambiguous("22:22".into())),
        ("0644", Value::Ambiguous("0644".into())),
        ("1_000", Value::Ambiguous("1_000".into())),
        ("no", Value::Ambiguous("no".into())),
        ("\"no\"", Value::Text("no".into())),
        ("'12'", Value::Text("12".into())),
        ("!!str 12", Value::Text("12".into())),
        ("! 12", Value::Text("12".into())),
        ("!!int 12", int(12, "12")),
        ("|\n 12\n", Value::Text("12\n".into())),
    ] {
        assert_eq!(get(&read(&format!("k: {text}")), "k").value, want, "{text}");
    }
}

#[test]
fn a_repeated_key_is_a_problem_at_its_second_line() {
    let (line, message) = only_problem("a: 1\nb: 2\na: 3\n");
    assert_eq!(line, 3);
    assert!(message.contains("\"a\""), "{message}");
    let (node, _) = parse(&Source::new("f", "a: 1\na: 2\n"));
    assert_eq!(get(&node.unwrap(), "a").value, Value::Int(1, "1".into()));
}

#[test]
fn merges_fill_in_what_is_not_said() {
    let root = read("base: &b {x: 1, y: 2}\nmore: &m {x: 9, z: 3}\nc:\n  y: 5\n  <<: [*b, *m]\n");
    let c = get(&root, "c");
    let number = |key| get(c, key).value.scalar_text().unwrap().to_owned();
    assert_eq!(
        (number("x"), number("y"), number("z")),
        ("1".into(), "5".into(), "3".into())
    );
    assert!(only_problem("a:\n  <<: 5\n").1.contains("merges mappings"));
    assert_eq!(get(&read("a: {'<<': 5}"), "a").value.kind(), "a mapping");
}

#[test]
fn tags_of_programming_languages_are_refused() {
    for text in [
        "a: !!python/object/apply:os.getcwd []",
        "a: !custom x",
        "!!set {a, b}",
        "a: !!binary aGk=",
    ] {
        let (line, message) = only_problem(text);
        assert_eq!(line, 1);
        assert!(message.contains("tag"), "{message}");
    }
    assert!(only_problem("a: !!int x").1.contains("does not fit"));
}

#[test]
fn one_document_per_file() {
    assert_eq!(read("---\na: 1\n...\n").value.kind(), "a mapping");
    assert_eq!(read("").value, Value::Null);
    assert_eq!(read("# only a comment\n").value, Value::Null);
    assert_eq!(only_problem("a: 1\n---\nb: 2\n").0, 2);
}

#[test]
fn syntax_errors_name_their_line() {
    let (line, message) = only_problem("a: 1\nb: [1, 2\nc: 3\n");
    assert!((2..=4).contains(&line), "{line}");
    assert!(message.contains("not YAML"), "{message}");
    assert!(only_problem("a: b: c: [").1.contains("not YAML"));
    assert!(only_problem("a: *nobody").1.contains("not YAML"));
    assert_eq!(only_problem("a: 1\nb: \u{0}\nc: 2").0, 2);
    assert!(problems("\u{feff}a: 1").is_empty());
}

#[test]
fn a_carriage_return_ends_a_line_only_with_a_line_feed() {
    assert!(problems("a: 1\r\nb: 2\r\n").is_empty());
    for text in ["a: 1\r\nb: 2\rc: 3\n", "a: 1\r\nb: 2\r", "a: 1\nb: 2\r\r\n"] {
        let (line, message) = only_problem(text);
        assert!(line == 2 && message.contains("\\u{d}"), "{line}: {message}");
    }
}

#[test]
fn bombs_are_refused_before_they_expand() {
    let mut billion = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        let row = format!("*a{}, ", level - 1).repeat(10);
        writeln!(billion, "a{level}: &a{level} [{row}]").unwrap();
    }
    assert!(only_problem(&billion).1.contains("too large"));
    let long = format!(
        "a: &a {}\nb: [{}]\n",
        "x".repeat(500_000),
        "*a, ".repeat(100_000)
    );
    assert!(only_problem(&long).1.contains("too large"));
    assert_eq!(problems(&"[".repeat(500_000)).len(), 1);
    assert!(only_problem(&"[".repeat(100)).1.contains("deeper"));
    assert!(only_problem(&"- ".repeat(100_000)).1.contains("deeper"));
    assert!(
        only_problem(&format!("a: {}", "x".repeat(2 << 20)))
            .1
            .contains("bytes")
    );
    let mut tower = String::from("a0: &a0 [x]\n");
    for level in 1..500 {
        writeln!(tower, "a{level}: &a{level} [*a{}]", level - 1).unwrap();
    }
    assert!(only_problem(&tower).1.contains("deeper"));
    assert!(only_problem("a: &a [*a]").1.contains("inside"));
}
