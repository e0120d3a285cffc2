//! Reads fields of mappings, and collects what is wrong with them.

use super::ManifestError;
use crate::template::MAX_PROBLEMS;
use crate::yaml::{Located, Node, Span, brief, did_you_mean};

/// What is wrong so far, bounded.
#[derive(Default)]
pub(super) struct Errors {
    errors: Vec<ManifestError>,
}

impl Errors {
    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.errors.len() >= MAX_PROBLEMS
    }

    pub(super) fn push(&mut self, span: Span, field: &str, message: impl Into<String>) {
        self.add(ManifestError {
            line: span.line,
            column: span.column,
            field: field.to_owned(),
            message: message.into(),
        });
    }

    pub(super) fn add(&mut self, error: ManifestError) {
        if !self.is_full() {
            self.errors.push(error);
        }
    }

    /// The errors in the order of the text.
    pub(super) fn sorted(mut self) -> Vec<ManifestError> {
        self.errors.sort_by_key(|error| (error.line, error.column));
        self.errors
    }

    /// The fields of a mapping; others than these are errors.
    pub(super) fn fields<'a>(&mut self, node: &'a Node, path: &str, known: &[&str]) -> Option<Fields<'a>> {
        let entries = self.mapping(node, path)?;
        let fields = Fields { entries, path: path.to_owned(), span: node.span };
        for (key, _) in entries {
            let name = text(key);
            if !known.contains(&name) && !self.is_full() {
                let hint = did_you_mean(name, known.iter().copied());
                let message = format!("there is no such field{hint}; the fields are {}", known.join(", "));
                self.push(key.span, &fields.path(name), message);
            }
        }
        Some(fields)
    }

    pub(super) fn mapping<'a>(&mut self, node: &'a Node, path: &str) -> Option<&'a [(Node, Node)]> {
        let entries = node.as_mapping();
        if entries.is_none() {
            self.wrong_type(node, path, "a mapping");
        }
        entries
    }

    pub(super) fn list<'a>(&mut self, node: &'a Node, path: &str) -> &'a [Node] {
        let items = node.as_sequence();
        if items.is_none() {
            self.wrong_type(node, path, "a list");
        }
        items.unwrap_or_default()
    }

    pub(super) fn string<'a>(&mut self, node: &'a Node, path: &str) -> Option<&'a str> {
        let string = node.as_str();
        if string.is_none() {
            self.wrong_type(node, path, "a string");
        }
        string
    }

    pub(super) fn bool(&mut self, node: &Node, path: &str) -> Option<bool> {
        let flag = node.as_bool();
        if flag.is_none() {
            self.wrong_type(node, path, "true or false");
        }
        flag
    }

    /// A list of strings.
    pub(super) fn string_list(&mut self, node: &Node, path: &str) -> Vec<Located<String>> {
        let mut strings = Vec::new();
        for (n, item) in self.list(node, path).iter().enumerate() {
            let string = self.string(item, &format!("{path}[{n}]"));
            strings.extend(string.map(|string| Located { value: string.to_owned(), span: item.span }));
        }
        strings
    }

    /// A mapping of strings to strings.
    pub(super) fn strings<'a>(&mut self, node: &'a Node, path: &str) -> Vec<(Located<&'a str>, &'a str)> {
        let mut strings = Vec::new();
        for (key, value) in self.mapping(node, path).unwrap_or_default() {
            let name = text(key);
            let string = self.string(value, &join(path, name));
            strings.extend(string.map(|string| (Located { value: name, span: key.span }, string)));
        }
        strings
    }

    fn wrong_type(&mut self, node: &Node, path: &str, expected: &str) {
        let found = match node.as_scalar() {
            Some(scalar) if !node.is_null() => format!("{} {}", node.kind(), brief(&scalar.text)),
            _ => node.kind().to_owned(),
        };
        let fix = match (expected, node.as_scalar()) {
            ("a string", Some(_)) if !node.is_null() => ": put it in quotes",
            ("true or false", Some(scalar)) if matches!(scalar.text.as_str(), "true" | "false") => {
                ": remove the quotes"
            }
            _ => "",
        };
        self.push(node.span, path, format!("must be {expected}, this is {found}{fix}"));
    }
}

/// The text of a key.
pub(super) fn text(key: &Node) -> &str {
    key.as_scalar().map_or("", |scalar| scalar.text.as_str())
}

/// The path of a field of what stands at this path. Long names are cut.
pub(super) fn join(path: &str, field: &str) -> String {
    const LONGEST: usize = 80;
    let field: String = field.chars().take(LONGEST).collect();
    if path.is_empty() { field } else { format!("{path}.{field}") }
}

/// The fields of a mapping. One that is null counts as absent.
pub(super) struct Fields<'a> {
    entries: &'a [(Node, Node)],
    path: String,
    pub(super) span: Span,
}

impl<'a> Fields<'a> {
    pub(super) fn path(&self, field: &str) -> String {
        join(&self.path, field)
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Node> {
        let entry = self.entries.iter().find(|(key, _)| text(key) == field);
        entry.map(|(_, value)| value).filter(|value| !value.is_null())
    }

    /// Where the value of a field stands, or the mapping.
    pub(super) fn place(&self, field: &str) -> Span {
        self.get(field).map_or(self.span, |node| node.span)
    }

    pub(super) fn required(&self, field: &str, errors: &mut Errors) -> Option<&'a Node> {
        let node = self.get(field);
        if node.is_none() {
            errors.push(self.span, &self.path(field), "is missing: add it");
        }
        node
    }

    /// A required string.
    pub(super) fn string(&self, field: &str, errors: &mut Errors) -> Option<&'a str> {
        let node = self.required(field, errors)?;
        errors.string(node, &self.path(field))
    }

    /// A required string and its place.
    pub(super) fn located(&self, field: &str, errors: &mut Errors) -> Option<Located<String>> {
        let value = self.string(field, errors)?.to_owned();
        Some(Located { value, span: self.place(field) })
    }
}
