//! What is wrong in a file: where, what, and how it would be right.
//!
//! Problems are collected, never thrown: a person who fixes a file wants all of them at once,
//! in the order of the file.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A file as it was read: its name is only for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name that messages show.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// A file's name and text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }
}

/// One thing that is wrong in a file.
///
/// The order is that of a compiler's output: by file, then by line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The path of the key, for example `applications.db.ports[0].internal`; empty for the
    /// whole document.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub cure: String,
}

impl fmt::Display for Problem {
    /// `file:line: path: message; cure`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}; {}", self.message, self.cure)
    }
}

/// All problems, one per line, as a person reads them.
#[must_use]
pub fn render(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(Problem::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// The path of a key below `parent`. Names that would blur the path are quoted.
pub(super) fn key_path(parent: &str, key: &str) -> String {
    let separator = if parent.is_empty() { "" } else { "." };
    let blurs = |c: char| c.is_control() || c.is_whitespace() || ".[]:\"".contains(c);
    if key.is_empty() || key.contains(blurs) {
        format!("{parent}{separator}{key:?}")
    } else {
        format!("{parent}{separator}{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_like_a_compiler_message() {
        let problem = Problem {
            file: "app.yml".into(),
            line: 7,
            path: "applications.db.image".into(),
            message: "the image is missing".into(),
            cure: "write image: NAME".into(),
        };
        assert_eq!(
            problem.to_string(),
            "app.yml:7: applications.db.image: the image is missing; write image: NAME"
        );
        let whole = Problem {
            path: String::new(),
            ..problem
        };
        assert_eq!(render(std::slice::from_ref(&whole)), whole.to_string());
        assert!(whole.to_string().starts_with("app.yml:7: the image"));
    }
}
