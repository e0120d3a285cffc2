//! YAML as manifests and templates need it: a tree that remembers where everything stood and how
//! every scalar was written, and an emitter that writes such a tree again without a loss.
//!
//! A plain scalar keeps its source text (`0.10`, `on`, `0x1F`, `${env:FOO}`), so nothing is read in
//! one way here and in another by an agent. Typed reading follows the core schema of YAML 1.2.

mod emit;
mod parse;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod wording;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use emit::{Piece, Tree, emit, escape};
pub use parse::{
    MAX_DEPTH, MAX_INDICATORS, MAX_INPUT, MAX_NODES, MAX_TEXT, YamlDocument, YamlError, parse_documents,
};
pub(crate) use schema::{Resolved, resolve};
pub(crate) use wording::{brief, did_you_mean};

/// A place in a text: 1-based line and column, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Span {
    /// The first character of a text.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A value that remembers where it stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stood.
    pub span: Span,
}

/// A node of a YAML tree. Aliases are resolved: the node is a copy of what it named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it begins; of a literal block scalar, where its text begins.
    pub span: Span,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A single value.
    Scalar(Scalar),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys and values, in the order of the text. Keys are scalars and no two have the same text.
    Mapping(Vec<(Node, Node)>),
}

/// A scalar as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    /// Its text: of a plain scalar as it stood, else with escapes and folding undone.
    pub text: String,
    /// How it was written.
    pub style: Style,
    /// Where its text stands in the source, character for character, if it does.
    verbatim: Option<Span>,
}

/// How a scalar was written. Only a plain one can be anything but a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without quotes. Its type follows from its text.
    Plain,
    /// A string: in quotes, folded (`>`), tagged `!!str`, or plain over several lines.
    Quoted,
    /// A string: a literal block (`|`).
    Block,
}

impl Scalar {
    /// A scalar that was not read from a text.
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style, verbatim: None }
    }

    /// What it is by the core schema.
    pub(crate) fn resolve(&self) -> Resolved {
        match self.style {
            Style::Plain => resolve(&self.text),
            Style::Quoted | Style::Block => Resolved::String,
        }
    }
}

impl Node {
    /// The text of a string; `None` for anything else, so also for a plain `1` or `true`.
    pub fn as_str(&self) -> Option<&str> {
        let scalar = self.as_scalar()?;
        (scalar.resolve() == Resolved::String).then_some(scalar.text.as_str())
    }

    /// A plain `true` or `false`.
    pub fn as_bool(&self) -> Option<bool> {
        match self.as_scalar()?.resolve() {
            Resolved::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A plain whole number (decimal, `0o` or `0x`) that 64 bits hold.
    pub fn as_i64(&self) -> Option<i64> {
        match self.as_scalar()?.resolve() {
            Resolved::Int(value) => value,
            _ => None,
        }
    }

    /// A plain number; may be infinite or not a number (`.inf`, `.nan`).
    pub fn as_f64(&self) -> Option<f64> {
        let scalar = self.as_scalar()?;
        match scalar.resolve() {
            Resolved::Float(value) => Some(value),
            Resolved::Int(Some(value)) => Some(value as f64),
            Resolved::Int(None) => scalar.text.parse().ok(),
            _ => None,
        }
    }

    /// Whether it is null: plain `null` or `~`, or nothing at all.
    pub fn is_null(&self) -> bool {
        self.as_scalar().is_some_and(|scalar| scalar.resolve() == Resolved::Null)
    }

    /// The scalar, if it is one.
    pub fn as_scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }

    /// The items, if it is a sequence.
    pub fn as_sequence(&self) -> Option<&[Self]> {
        match &self.value {
            Value::Sequence(items) => Some(items),
            Value::Scalar(_) | Value::Mapping(_) => None,
        }
    }

    /// Keys and values, if it is a mapping.
    pub fn as_mapping(&self) -> Option<&[(Self, Self)]> {
        match &self.value {
            Value::Mapping(entries) => Some(entries),
            Value::Scalar(_) | Value::Sequence(_) => None,
        }
    }

    /// The value of a key, if it is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let is_key = |node: &Self| node.as_scalar().is_some_and(|scalar| scalar.text == key);
        self.as_mapping()?.iter().find(|(name, _)| is_key(name)).map(|(_, value)| value)
    }

    /// What it is, for messages: `a string`, `an int`, ...
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
            Value::Scalar(scalar) => match scalar.resolve() {
                Resolved::Null => "empty",
                Resolved::Bool(_) => "a bool",
                Resolved::Int(_) => "an int",
                Resolved::Float(_) => "a float",
                Resolved::String => "a string",
            },
        }
    }

    /// Where a byte of a scalar's text stood in the source: exactly where the text stood there
    /// character for character, else the node's own place.
    pub fn place_of(&self, offset: usize) -> Span {
        let place = self.as_scalar().and_then(|scalar| Some((scalar.verbatim?, scalar.text.get(..offset)?)));
        let Some((start, before)) = place else { return self.span };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let column = match before.rsplit_once('\n') {
            Some((_, line)) => line.chars().count(),
            None => before.chars().count(),
        };
        Span {
            line: start.line.saturating_add(count(before.matches('\n').count())),
            column: start.column.saturating_add(count(column)),
        }
    }
}
