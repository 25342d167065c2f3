//! From the parser's events to the tree: bounds, anchors, merges, repeated keys.
//!
//! Nothing recurses: open collections are on a stack of bounded height. What an alias repeats is
//! paid for before it is copied.

use std::collections::{BTreeSet, HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::{Entry, Node, Value, scalar};
use crate::config::problem::{Problem, key_path};

/// The largest file that is read.
const MAX_TEXT: usize = 1 << 20;
/// The deepest nesting, aliases included.
const MAX_DEPTH: usize = 64;
/// The largest tree, aliases expanded: bytes of text plus [`NODE_COST`] for each node.
const MAX_COST: usize = 16 << 20;
/// What a node costs besides its text.
const NODE_COST: usize = 32;

/// An anchored value, ready to be repeated.
struct Anchored {
    node: Node,
    cost: usize,
    height: usize,
}

/// A collection whose end has not been met yet.
struct Open {
    line: usize,
    anchor: usize,
    cost: usize,
    height: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        key: Option<Node>,
    },
}

/// Builds the tree from the parser's events. No recursion: open collections are on a stack.
pub(super) struct Builder<'s> {
    file: &'s str,
    pub(super) problems: Vec<Problem>,
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    root: Option<Node>,
    total: usize,
}

impl<'s> Builder<'s> {
    pub(super) fn new(file: &'s str) -> Self {
        Self {
            file,
            problems: Vec::new(),
            open: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            total: 0,
        }
    }

    fn problem(&self, line: usize, message: impl Into<String>, cure: impl Into<String>) -> Problem {
        Problem {
            file: self.file.to_owned(),
            line: line.max(1),
            path: String::new(),
            message: message.into(),
            cure: cure.into(),
        }
    }

    /// Reads the one document of a text.
    pub(super) fn document(&mut self, text: &str) -> Result<Node, Problem> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        self.check_text(text)?;
        let mut parser = Parser::new_from_str(text);
        let mut documents = 0_usize;
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| self.syntax(&error))?;
            if matches!(event, Event::DocumentStart(_)) {
                documents = documents.saturating_add(1);
                if documents > 1 {
                    return Err(self.problem(
                        span.start.line(),
                        "a second YAML document begins here",
                        "keep one document per file, without a second '---'",
                    ));
                }
            }
            self.event(event, span)?;
        }
        Ok(self.root.take().unwrap_or(Node {
            line: 1,
            value: Value::Null,
        }))
    }

    /// What the parser must not see: a text that is too long, characters that YAML forbids (it
    /// takes a NUL for the end of the text and would ignore what follows), and a carriage return
    /// alone (it ends a line for YAML and in hardly any editor: all lines after it would be called
    /// by another number).
    fn check_text(&self, text: &str) -> Result<(), Problem> {
        if text.len() > MAX_TEXT {
            return Err(self.problem(
                1,
                format!(
                    "the file has {} bytes, too many for a configuration",
                    text.len()
                ),
                format!("keep it below {MAX_TEXT} bytes"),
            ));
        }
        let forbidden = |c: char| {
            (c.is_control() && !matches!(c, '\t' | '\n' | '\u{85}'))
                || matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{feff}')
        };
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let line = line.strip_suffix("\r\n").unwrap_or(line);
            if let Some(c) = line.chars().find(|c| forbidden(*c)) {
                return Err(self.problem(
                    index.saturating_add(1),
                    format!(
                        "the file is not YAML: it holds the character {}",
                        c.escape_unicode()
                    ),
                    "remove the character; in a double-quoted text write its escape",
                ));
            }
        }
        Ok(())
    }

    fn syntax(&self, error: &ScanError) -> Problem {
        self.problem(
            error.marker().line(),
            format!(
                "the file is not YAML: {} (column {})",
                error.info(),
                error.marker().col().saturating_add(1)
            ),
            "check indentation, quotes, brackets and colons here and on the line before",
        )
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let line = span.start.line().max(1);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = matches!(style, ScalarStyle::Plain);
                let cost = NODE_COST.saturating_add(text.len());
                self.pay(line, cost)?;
                let value = self.scalar(line, text.into_owned(), plain, tag.as_deref())?;
                self.complete(Node { line, value }, anchor, cost, 1)
            }
            Event::SequenceStart(anchor, tag) => {
                self.collection_tag(line, tag.as_deref(), "seq")?;
                self.begin(line, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.collection_tag(line, tag.as_deref(), "map")?;
                self.begin(
                    line,
                    anchor,
                    Content::Map {
                        entries: Vec::new(),
                        key: None,
                    },
                )
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(line, anchor),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn scalar(
        &self,
        line: usize,
        text: String,
        plain: bool,
        tag: Option<&Tag>,
    ) -> Result<Value, Problem> {
        let resolved = |text: String| {
            if plain {
                scalar::resolve(text)
            } else {
                Value::Text(text)
            }
        };
        let Some(tag) = tag else {
            return Ok(resolved(text));
        };
        let name = if tag.is_yaml_core_schema() {
            tag.suffix.as_str()
        } else {
            ""
        };
        let value = match name {
            "str" => return Ok(Value::Text(text)),
            "null" | "bool" | "int" | "float" => scalar::resolve(text),
            _ if tag.handle.is_empty() && tag.suffix == "!" => return Ok(Value::Text(text)),
            _ => return Err(self.bad_tag(line, tag)),
        };
        match (name, &value) {
            ("null", Value::Null)
            | ("bool", Value::Bool(_))
            | ("int", Value::Int(..))
            | ("float", Value::Int(..) | Value::Float(_)) => Ok(value),
            _ => Err(self.problem(
                line,
                format!("the value does not fit its tag '!!{name}'"),
                "remove the tag",
            )),
        }
    }

    fn collection_tag(&self, line: usize, tag: Option<&Tag>, own: &str) -> Result<(), Problem> {
        match tag {
            Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == own) => {
                Err(self.bad_tag(line, tag))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn bad_tag(&self, line: usize, tag: &Tag) -> Problem {
        let name = if tag.is_yaml_core_schema() {
            format!("!!{}", tag.suffix)
        } else {
            format!("{}{}", tag.handle, tag.suffix)
        };
        self.problem(
            line,
            format!("the file is not acceptable YAML: the tag {name:?} is not allowed"),
            "write plain values: texts, numbers, booleans, lists and mappings",
        )
    }

    /// Counts what the tree costs, before it is built.
    fn pay(&mut self, line: usize, cost: usize) -> Result<(), Problem> {
        self.total = self.total.saturating_add(cost);
        if self.total > MAX_COST {
            return Err(self.problem(
                line,
                "the file is too large once its aliases are expanded",
                "repeat less through anchors and aliases",
            ));
        }
        Ok(())
    }

    fn begin(&mut self, line: usize, anchor: usize, content: Content) -> Result<(), Problem> {
        self.pay(line, NODE_COST)?;
        self.check_depth(line, 1)?;
        self.open.push(Open {
            line,
            anchor,
            cost: NODE_COST,
            height: 1,
            content,
        });
        Ok(())
    }

    fn check_depth(&self, line: usize, height: usize) -> Result<(), Problem> {
        if self.open.len().saturating_add(height) > MAX_DEPTH {
            return Err(self.problem(
                line,
                format!("the nesting is deeper than {MAX_DEPTH} levels"),
                "a configuration needs about six",
            ));
        }
        Ok(())
    }

    fn alias(&mut self, line: usize, anchor: usize) -> Result<(), Problem> {
        let Some(Anchored { cost, height, .. }) = self.anchors.get(&anchor) else {
            return Err(self.problem(
                line,
                "this alias stands inside the value that it repeats",
                "let the alias come after the anchored value",
            ));
        };
        let (cost, height) = (*cost, *height);
        self.check_depth(line, height)?;
        self.pay(line, cost)?;
        let Some(node) = self.anchors.get(&anchor).map(|a| a.node.clone()) else {
            return Ok(());
        };
        self.complete(node, 0, cost, height)
    }

    fn end(&mut self) -> Result<(), Problem> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let value = match open.content {
            Content::List(items) => Value::List(items),
            Content::Map { entries, .. } => Value::Map(self.finish_map(entries)),
        };
        self.complete(
            Node {
                line: open.line,
                value,
            },
            open.anchor,
            open.cost,
            open.height,
        )
    }

    /// Puts a finished value where it belongs.
    fn complete(
        &mut self,
        node: Node,
        anchor: usize,
        cost: usize,
        height: usize,
    ) -> Result<(), Problem> {
        if anchor != 0 {
            self.pay(node.line, cost)?;
            self.anchors.insert(
                anchor,
                Anchored {
                    node: node.clone(),
                    cost,
                    height,
                },
            );
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.cost = open.cost.saturating_add(cost);
        open.height = open.height.max(height.saturating_add(1));
        match &mut open.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, key } => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.push(Entry { key, value: node }),
            },
        }
        Ok(())
    }

    /// The path of the collection that is being finished.
    fn path(&self) -> String {
        self.open
            .iter()
            .fold(String::new(), |path, open| match &open.content {
                Content::List(items) => format!("{path}[{}]", items.len()),
                Content::Map { key, .. } => {
                    let key = key.as_ref().and_then(|key| key.value.scalar_text());
                    key_path(&path, key.unwrap_or("?"))
                }
            })
    }

    /// Reports repeated keys and does the merges of `<<`.
    fn finish_map(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut seen = BTreeSet::new();
        let mut own = Vec::with_capacity(entries.len());
        let mut merges = Vec::new();
        for entry in entries {
            let name = key_identity(&entry.key);
            if !seen.insert(name.clone()) {
                let mut problem = self.problem(
                    entry.key.line,
                    format!("the key {name:?} is a duplicate: it stands twice in one mapping"),
                    "keep one of them; otherwise the last one silently wins",
                );
                problem.path = key_path(&self.path(), &name);
                self.problems.push(problem);
            } else if entry.key.value == Value::Merge {
                merges.push(entry.value);
            } else {
                own.push(entry);
            }
        }
        for merge in merges {
            self.merge(&mut own, &mut seen, merge);
        }
        own
    }

    fn merge(&mut self, own: &mut Vec<Entry>, seen: &mut BTreeSet<String>, merge: Node) {
        let line = merge.line;
        let sources = match merge.value {
            Value::List(items) => items,
            value => vec![Node { line, value }],
        };
        for source in sources {
            let Value::Map(entries) = source.value else {
                let problem = self.problem(
                    source.line,
                    format!("'<<' merges mappings, this is {}", source.value.kind()),
                    "write '<<: *anchor' with the anchor of a mapping",
                );
                self.problems.push(problem);
                continue;
            };
            own.extend(
                entries
                    .into_iter()
                    .filter(|e| seen.insert(key_identity(&e.key))),
            );
        }
    }
}

/// What makes two keys the same one.
fn key_identity(key: &Node) -> String {
    key.value
        .scalar_text()
        .map_or_else(|| format!("{:?}", key.value), str::to_owned)
}
