//! From trees to block-style YAML, as pieces of text with slots between them.

use super::schema::{Resolved, is_exact_plain, is_simple, resolve};
use super::{Node, Style};

/// A part of an emitted text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Piece<S> {
    /// Text as it stands.
    Text(String),
    /// A place for a value.
    Slot(S),
}

/// A tree to emit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tree<S> {
    /// A plain scalar, written as it is.
    Plain(String),
    /// A string, made of these pieces. The value of a slot must come escaped, see [`escape`].
    String(Vec<Piece<S>>),
    /// A scalar that is a slot. Its value must come as a scalar on one line.
    Slot(S),
    /// A list.
    Sequence(Vec<Self>),
    /// Keys, which are scalars, and values.
    Mapping(Vec<(Self, Self)>),
}

impl<S> Tree<S> {
    /// A scalar as it came.
    pub(crate) fn same(node: &Node) -> Self {
        match node.as_scalar() {
            Some(scalar) if scalar.style == Style::Plain => Self::Plain(scalar.text.clone()),
            Some(scalar) => Self::String(vec![Piece::Text(scalar.text.clone())]),
            None => Self::Plain(String::new()),
        }
    }
}

/// Longest key, in bytes, that is written as `key: value`; parsers give up at 1024 characters.
const MAX_SIMPLE_KEY: usize = 512;

/// Emits a tree. No two texts follow each other, and none is empty.
pub(crate) fn emit<S>(tree: Tree<S>) -> Vec<Piece<S>> {
    let mut emitter = Emitter { pieces: Vec::new(), text: String::new() };
    match tree {
        Tree::Mapping(entries) if !entries.is_empty() => emitter.mapping(entries, 0),
        Tree::Sequence(items) if !items.is_empty() => emitter.sequence(items, 0),
        other => emitter.inline(other, 0),
    }
    emitter.flush();
    emitter.pieces
}

/// Escapes a text for a double-quoted scalar. The escapes are JSON's.
pub(crate) fn escape(text: &str, into: &mut String) {
    for c in text.chars() {
        match c {
            '"' => into.push_str("\\\""),
            '\\' => into.push_str("\\\\"),
            '\n' => into.push_str("\\n"),
            '\r' => into.push_str("\\r"),
            '\t' => into.push_str("\\t"),
            c if is_simple(c) => into.push(c),
            // All others are below U+10000.
            c => into.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
}

struct Emitter<S> {
    pieces: Vec<Piece<S>>,
    text: String,
}

impl<S> Emitter<S> {
    fn flush(&mut self) {
        if !self.text.is_empty() {
            self.pieces.push(Piece::Text(std::mem::take(&mut self.text)));
        }
    }

    fn slot(&mut self, slot: S) {
        self.flush();
        self.pieces.push(Piece::Slot(slot));
    }

    fn indent(&mut self, indent: usize) {
        self.text.extend(std::iter::repeat_n(' ', indent));
    }

    /// The entries, the first where the emitter stands, the others each on a line of this indent.
    fn mapping(&mut self, entries: Vec<(Tree<S>, Tree<S>)>, indent: usize) {
        for (n, (key, value)) in entries.into_iter().enumerate() {
            if n > 0 {
                self.indent(indent);
            }
            match simple_key(&key) {
                Some(key) => {
                    self.text.push_str(&key);
                    self.text.push(':');
                    self.value(value, indent);
                }
                None => {
                    self.text.push('?');
                    self.item(key, indent);
                    self.indent(indent);
                    self.text.push(':');
                    self.item(value, indent);
                }
            }
        }
    }

    fn sequence(&mut self, items: Vec<Tree<S>>, indent: usize) {
        for (n, item) in items.into_iter().enumerate() {
            if n > 0 {
                self.indent(indent);
            }
            self.text.push('-');
            self.item(item, indent);
        }
    }

    /// What follows `key:`.
    fn value(&mut self, value: Tree<S>, indent: usize) {
        match value {
            Tree::Mapping(entries) if !entries.is_empty() => {
                self.text.push('\n');
                self.indent(indent + 2);
                self.mapping(entries, indent + 2);
            }
            Tree::Sequence(items) if !items.is_empty() => {
                self.text.push('\n');
                self.indent(indent + 2);
                self.sequence(items, indent + 2);
            }
            other => self.spaced(other, indent + 2),
        }
    }

    /// What follows `-`, or the `?` and `:` of a key that is not simple.
    fn item(&mut self, item: Tree<S>, indent: usize) {
        match item {
            Tree::Mapping(entries) if !entries.is_empty() => {
                self.text.push(' ');
                self.mapping(entries, indent + 2);
            }
            Tree::Sequence(items) if !items.is_empty() => {
                self.text.push(' ');
                self.sequence(items, indent + 2);
            }
            other => self.spaced(other, indent + 2),
        }
    }

    fn spaced(&mut self, tree: Tree<S>, indent: usize) {
        if !matches!(&tree, Tree::Plain(text) if text.is_empty()) {
            self.text.push(' ');
        }
        self.inline(tree, indent);
    }

    /// A scalar or an empty collection, and the end of its line. `indent` is for further lines.
    fn inline(&mut self, tree: Tree<S>, indent: usize) {
        match tree {
            Tree::Plain(text) => plain(&text, &mut self.text),
            Tree::Slot(slot) => self.slot(slot),
            Tree::Sequence(_) => self.text.push_str("[]"),
            Tree::Mapping(_) => self.text.push_str("{}"),
            Tree::String(pieces) => match single(&pieces) {
                Some(text) if is_exact_literal(text) => return self.literal(text, indent.max(2)),
                _ => self.quoted(pieces),
            },
        }
        self.text.push('\n');
    }

    fn quoted(&mut self, pieces: Vec<Piece<S>>) {
        self.text.push('"');
        for piece in pieces {
            match piece {
                Piece::Text(text) => escape(&text, &mut self.text),
                Piece::Slot(slot) => self.slot(slot),
            }
        }
        self.text.push('"');
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.text.push_str(if text.ends_with('\n') { "|\n" } else { "|-\n" });
        for line in text.lines() {
            if !line.is_empty() {
                self.indent(indent);
                self.text.push_str(line);
            }
            self.text.push('\n');
        }
    }
}

fn single<S>(pieces: &[Piece<S>]) -> Option<&str> {
    match pieces {
        [Piece::Text(text)] => Some(text),
        _ => None,
    }
}

fn plain(text: &str, into: &mut String) {
    if resolve(text) != Resolved::String || is_exact_plain(text) {
        into.push_str(text);
    } else {
        into.push('"');
        escape(text, into);
        into.push('"');
    }
}

/// The text of a key that may stand before `:` on one line. One with a slot may not: it can get
/// longer than parsers take.
fn simple_key<S>(key: &Tree<S>) -> Option<String> {
    let mut text = String::new();
    match key {
        Tree::Plain(plain_text) => plain(plain_text, &mut text),
        Tree::String(pieces) => {
            text.push('"');
            match pieces.as_slice() {
                [] => {}
                pieces => escape(single(pieces)?, &mut text),
            }
            text.push('"');
        }
        Tree::Slot(_) | Tree::Sequence(_) | Tree::Mapping(_) => return None,
    }
    (!text.is_empty() && text.len() <= MAX_SIMPLE_KEY).then_some(text)
}

/// Whether a literal block gives back this text, in every parser: several lines of simple characters,
/// the first with text at its beginning, none of blanks only, at most one line break at the end.
fn is_exact_literal(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let good_line = |line: &str| line.is_empty() || !line.trim_matches([' ', '\t']).is_empty();
    text.contains('\n')
        && !body.is_empty()
        && !body.starts_with(['\n', ' ', '\t'])
        && !body.ends_with('\n')
        && body.split('\n').all(|line| good_line(line) && !line.starts_with('\t'))
        && body.chars().all(|c| is_simple(c) || matches!(c, '\n' | '\t'))
}
