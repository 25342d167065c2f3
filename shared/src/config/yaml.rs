//! Text to a tree in which every key and value knows its line.
//!
//! The text is not trusted: size, depth and what aliases expand to are bounded, so that no file
//! costs more than a few megabytes and no tree is deep enough to overflow a stack. Values are
//! typed by YAML's core schema; what YAML 1.1 and 1.2 read differently (`22:22`, `on`, `0644`)
//! is kept apart as [`Value::Ambiguous`], because a port that is silently 1342 helps nobody.
//!
//! A repeated key is a problem, tags that name types of a programming language are refused, and
//! so is a second document.

mod builder;
mod scalar;
#[cfg(test)]
mod tests;

use builder::Builder;

use super::problem::{Problem, Source};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// The line, from 1.
    pub(super) line: usize,
    /// What stands there.
    pub(super) value: Value,
}

/// A value by YAML's core schema. Numbers keep their text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128, String),
    /// Another number.
    Float(String),
    /// A text.
    Text(String),
    /// An unquoted text that YAML 1.1 takes for a number or a boolean and YAML 1.2 does not, or
    /// the other way round.
    Ambiguous(String),
    /// An unquoted `<<`.
    Merge,
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file, merges done, no key twice.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The key; almost always a text.
    pub(super) key: Node,
    /// The value.
    pub(super) value: Node,
}

impl Value {
    /// What it is, for "… expected, found …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(..) | Self::Float(_) => "a number",
            Self::Text(_) | Self::Merge => "a text",
            Self::Ambiguous(_) => "an unquoted text that YAML versions read differently",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }

    /// The text of a scalar as it stands in the file.
    pub(super) fn scalar_text(&self) -> Option<&str> {
        match self {
            Self::Null => Some(""),
            Self::Bool(true) => Some("true"),
            Self::Bool(false) => Some("false"),
            Self::Merge => Some("<<"),
            Self::Int(_, raw) | Self::Float(raw) | Self::Text(raw) | Self::Ambiguous(raw) => {
                Some(raw)
            }
            Self::List(_) | Self::Map(_) => None,
        }
    }
}

/// Reads one document. The tree is absent when the text cannot be read at all; problems may come
/// with a tree too (a repeated key: the first one counts).
pub(super) fn parse(source: &Source) -> (Option<Node>, Vec<Problem>) {
    let mut builder = Builder::new(&source.name);
    let root = match builder.document(&source.text) {
        Ok(root) => Some(root),
        Err(stop) => {
            builder.problems.push(stop);
            None
        }
    };
    (root, builder.problems)
}
