//! The configuration as it was given: values by path, each knowing where it stands.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use muster_domain::yaml::{self, Node, Span};

/// Where a key or a value was given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Lines and columns count from 1.
    File {
        file: Arc<str>,
        line: u32,
        column: u32,
    },
    Variable(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{file}: line {line}, column {column}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// Something to tell about the configuration: where, about which key (none: the whole), and what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Finding {
    pub(super) place: Option<Place>,
    pub(super) path: String,
    pub(super) what: String,
}

impl Finding {
    pub(super) fn new(place: &Place, path: &[String], what: impl Into<String>) -> Self {
        Self { place: Some(place.clone()), path: path.join("."), what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)
    }
}

/// The segments of a key: `server.tls.enabled` has three.
pub(super) type Path = Vec<String>;

/// A key of the source and what it was given.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where the key stands; its value may stand elsewhere.
    pub(super) place: Place,
    pub(super) given: Given,
}

/// A value of the source.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) place: Place,
    pub(super) value: Value,
    /// The text of the environment variable that the value is the whole of.
    raw: Option<String>,
}

#[derive(Debug)]
pub(super) enum Value {
    Empty,
    Scalar(Scalar),
    List(Vec<Given>),
    /// A mapping; what is in it has entries of its own, except within a list.
    Mapping,
}

#[derive(Debug)]
pub(super) struct Scalar {
    text: String,
    /// Whether it may be something else than a text.
    plain: bool,
}

impl Given {
    /// The value as text. What a variable says is taken as it is, unless it is in quotes: a
    /// password may begin with `*` or have ` #` in it.
    pub(super) fn text(&self) -> Option<&str> {
        match (&self.raw, &self.value) {
            (Some(raw), _) if !raw.starts_with(['"', '\'']) => Some(raw),
            (_, Value::Scalar(scalar)) => Some(&scalar.text),
            _ => None,
        }
    }

    /// The value as a word without quotes, as numbers and booleans are written.
    pub(super) fn word(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => scalar.plain.then_some(&scalar.text),
            _ => None,
        }
    }

    /// The value as an error message shows it.
    pub(super) fn shown(&self) -> String {
        const MOST: usize = 60;
        match &self.value {
            Value::Empty => "nothing".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Mapping => "a mapping".to_owned(),
            Value::Scalar(Scalar { text, .. }) => match text.char_indices().nth(MOST) {
                Some((end, _)) => format!("{:?}...", &text[..end]),
                None => format!("{text:?}"),
            },
        }
    }
}

/// Every key that was given. A mapping has an entry, and so has every key in it.
#[derive(Debug, Default)]
pub(super) struct Tree(BTreeMap<Path, Entry>);

impl Tree {
    /// The keys of a file.
    pub(super) fn from_file(file: &str, text: &str) -> Result<Self, Finding> {
        let file: Arc<str> = file.into();
        let place = |span: Span| Place::File { file: file.clone(), line: span.line, column: span.column };
        let refuse = |span, what: String| Err(Finding::new(&place(span), &[], what));
        let documents = match yaml::parse_documents(text) {
            Ok(documents) => documents,
            Err(error) => return refuse(Span { line: error.line, column: error.column }, error.message),
        };
        let mut roots = documents.into_iter().map(|document| document.root);
        let Some(root) = roots.next() else { return Ok(Self::default()) };
        if let Some(second) = roots.next() {
            let what = "a second document: the configuration is one, remove the `---` between them";
            return refuse(second.span, what.to_owned());
        }
        let mut tree = Self::default();
        match root.value {
            yaml::Value::Mapping(entries) => tree.add(&[], entries, &place),
            _ if root.is_null() => {}
            _ => {
                return refuse(
                    root.span,
                    format!("must be a mapping of keys to values, not {}", root.kind()),
                );
            }
        }
        Ok(tree)
    }

    /// Adds what an environment variable says, in YAML, of a key.
    pub(super) fn add_variable(&mut self, name: &str, path: Path, text: &str) -> Result<(), Finding> {
        let place = Place::Variable(name.into());
        let scalar = |text: &str| yaml::Value::Scalar(yaml::Scalar::new(text, yaml::Style::Plain));
        let plain = |text: &str| Node { value: scalar(text), span: Span::START };
        let node = match yaml::parse_documents(text).as_deref() {
            Ok([]) => plain(""),
            Ok([document]) => document.root.clone(),
            // What is not YAML is a text all the same.
            Ok(_) | Err(_) => plain(text),
        };
        let (mut given, entries) = convert(node, &|_| place.clone());
        if matches!(given.value, Value::Empty) {
            return Err(Finding::new(&place, &path, "has no value: give it one, or unset the variable"));
        }
        given.raw = Some(text.trim().to_owned());
        let mut own = Self::default();
        for end in 1..path.len() {
            let section = Given { place: place.clone(), value: Value::Mapping, raw: None };
            own.0.insert(path[..end].to_vec(), Entry { place: place.clone(), given: section });
        }
        own.add(&path, entries, &|_| place.clone());
        own.0.insert(path, Entry { place, given });
        self.overlay(own);
        Ok(())
    }

    fn add(&mut self, under: &[String], entries: Vec<(Node, Node)>, place: &impl Fn(Span) -> Place) {
        for (key, node) in entries {
            let key_place = place(key.span);
            let name = match key.value {
                yaml::Value::Scalar(scalar) => scalar.text,
                // The parser takes no other keys.
                yaml::Value::Sequence(_) | yaml::Value::Mapping(_) => continue,
            };
            let path: Path = under.iter().cloned().chain([name]).collect();
            let (given, entries) = convert(node, place);
            self.add(&path, entries, place);
            self.0.insert(path, Entry { place: key_place, given });
        }
    }

    /// Moves a key that was given under another name to its own.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Finding> {
        let Some(entry) = self.0.remove(from) else { return Ok(()) };
        if let Some(own) = self.0.get(to) {
            let what = format!("is another name of {}, given at {}: remove one", to.join("."), own.place);
            return Err(Finding::new(&entry.place, from, what));
        }
        self.0.insert(to.clone(), entry);
        Ok(())
    }

    /// Lets what another tree says go before what this one says.
    pub(super) fn overlay(&mut self, over: Self) {
        for (path, entry) in over.0 {
            let under = self.0.get(&path).map(|entry| &entry.given.value);
            match (&entry.given.value, under) {
                (Value::Mapping, Some(Value::Mapping)) => {}
                _ => {
                    self.remove(&path);
                    self.0.insert(path, entry);
                }
            }
        }
    }

    pub(super) fn take(&mut self, path: &Path) -> Option<Entry> {
        self.0.remove(path)
    }

    /// Removes a key and everything under it.
    pub(super) fn remove(&mut self, path: &Path) {
        self.0.retain(|other, _| !other.starts_with(path));
    }

    /// What was not taken: each key without those under it.
    pub(super) fn rest(&self) -> impl Iterator<Item = (&Path, &Place)> {
        let covered = |path: &Path| (1..path.len()).any(|end| self.0.contains_key(&path[..end]));
        self.0.iter().filter(move |(path, _)| !covered(path)).map(|(path, entry)| (path, &entry.place))
    }
}

/// The value of a node, and what is in it if it is a mapping.
fn convert(node: Node, place: &impl Fn(Span) -> Place) -> (Given, Vec<(Node, Node)>) {
    let is_null = node.is_null();
    let (value, entries) = match node.value {
        yaml::Value::Scalar(_) if is_null => (Value::Empty, Vec::new()),
        yaml::Value::Scalar(scalar) => {
            let plain = scalar.style == yaml::Style::Plain;
            (Value::Scalar(Scalar { text: scalar.text, plain }), Vec::new())
        }
        yaml::Value::Sequence(items) => {
            (Value::List(items.into_iter().map(|item| convert(item, place).0).collect()), Vec::new())
        }
        yaml::Value::Mapping(entries) => (Value::Mapping, entries),
    };
    (Given { place: place(node.span), value, raw: None }, entries)
}
