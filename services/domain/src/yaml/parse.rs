//! From text to trees, within bounds, whatever the text.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::schema::{Resolved, is_exact_plain, resolve};
use super::{Node, Scalar, Span, Style, Value, brief};

/// Longest input, in bytes.
pub const MAX_INPUT: usize = 4 << 20;
/// Most characters that can be YAML's own (``,:[]{}!&*?``) in an input. The scanner holds all tokens of
/// a bracket at once; this bounds its memory.
pub const MAX_INDICATORS: usize = 200_000;
/// Most nodes in an input, those that anchors and aliases repeat counted again.
pub const MAX_NODES: usize = 100_000;
/// Most bytes of scalars in an input, those that anchors and aliases repeat counted again.
pub const MAX_TEXT: usize = 16 << 20;
/// Deepest nesting of lists and mappings.
pub const MAX_DEPTH: usize = 64;

/// A text that is not YAML, or not YAML that is taken here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct YamlError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong, and the fix.
    pub message: String,
}

/// A document of a YAML stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlDocument<'a> {
    /// Its tree.
    pub root: Node,
    /// Its own lines of the stream, without the markers `---` and `...` before them.
    pub source: &'a str,
}

/// Reads a YAML stream. Documents without content are skipped; aliases are resolved by copying.
///
/// # Errors
/// The first thing that is wrong: bad syntax, a duplicate or non-scalar key, a tag outside the core
/// schema, an alias of nothing or of itself, or a bound exceeded ([`MAX_INPUT`], [`MAX_NODES`],
/// [`MAX_TEXT`], [`MAX_DEPTH`], [`MAX_INDICATORS`]).
pub fn parse_documents(text: &str) -> Result<Vec<YamlDocument<'_>>, YamlError> {
    if text.len() > MAX_INPUT {
        return Err(error(Span::START, format!("is longer than {MAX_INPUT} bytes: split it")));
    }
    let indicators = text.bytes().filter(|byte| b",:[]{}!&*?".contains(byte)).count();
    if indicators > MAX_INDICATORS {
        let message = format!("has more than {MAX_INDICATORS} of the characters `,:[]{{}}!&*?`: split it");
        return Err(error(Span::START, message));
    }
    let mut builder = Builder::default();
    let mut cursor = Cursor::new(text);
    let mut documents = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, range) = event.map_err(|error| syntax_error(text, &error))?;
        let span = span_of(range.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
            Event::DocumentStart(_) => builder.anchors.clear(),
            Event::DocumentEnd => {
                let source = cursor.document(range.start.index());
                let roots = builder.root.take().filter(|root| !is_nothing(root));
                documents.extend(roots.map(|root| YamlDocument { root, source }));
            }
            Event::Alias(anchor) => builder.alias(anchor, span)?,
            Event::Scalar(text, style, anchor, tag) => {
                let node = scalar(
                    text.into_owned(),
                    style,
                    tag.as_deref(),
                    range.start,
                    cursor.rest(range.start.index()),
                )?;
                builder.add(Built { size: Size::of(&node), node, height: 0 }, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                check_collection_tag(tag.as_deref(), "seq", span)?;
                builder.begin(Value::Sequence(Vec::new()), anchor, span)?;
            }
            Event::MappingStart(anchor, tag) => {
                check_collection_tag(tag.as_deref(), "map", span)?;
                builder.begin(Value::Mapping(Vec::new()), anchor, span)?;
            }
            Event::SequenceEnd | Event::MappingEnd => builder.end()?,
        }
    }
    Ok(documents)
}

fn error(span: Span, message: impl Into<String>) -> YamlError {
    YamlError { line: span.line, column: span.column, message: message.into() }
}

fn span_of(marker: Marker) -> Span {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Span { line: number(marker.line()).max(1), column: number(marker.col()).saturating_add(1) }
}

/// A syntax error. Most that show up beside a placeholder are a value that begins with one and is not
/// quoted.
fn syntax_error(text: &str, scan: &ScanError) -> YamlError {
    let span = span_of(*scan.marker());
    let line = text.lines().nth(scan.marker().line().saturating_sub(1)).unwrap_or_default();
    let hint = if line.contains("{{") { format!("; {QUOTE_PLACEHOLDER}") } else { String::new() };
    error(span, format!("is not YAML: {}{hint}", scan.info()))
}

const QUOTE_PLACEHOLDER: &str = "put a value that begins with a placeholder in quotes: \"{{.name}}\"";

fn is_nothing(node: &Node) -> bool {
    node.as_scalar().is_some_and(|scalar| scalar.style == Style::Plain && scalar.text.is_empty())
}

/// Follows the scanner, which counts characters, through the text. Goes forward only.
struct Cursor<'a> {
    text: &'a str,
    /// Characters and bytes before the cursor.
    chars: usize,
    bytes: usize,
    /// Bytes that documents took so far.
    taken: usize,
}

impl<'a> Cursor<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, chars: 0, bytes: 0, taken: 0 }
    }

    /// The text from this character on.
    fn rest(&mut self, chars: usize) -> &'a str {
        let rest = &self.text[self.bytes..];
        let ahead = chars.saturating_sub(self.chars);
        self.bytes += rest.char_indices().nth(ahead).map_or(rest.len(), |(at, _)| at);
        self.chars += ahead;
        &self.text[self.bytes..]
    }

    /// The text since the last document up to this character, without the markers before it.
    fn document(&mut self, chars: usize) -> &'a str {
        let end = self.text.len() - self.rest(chars).len();
        let mut source = &self.text[self.taken..end];
        self.taken = end;
        while let Some((first, after)) = source.split_once('\n') {
            if !matches!(first.trim_end_matches([' ', '\t', '\r']), "" | "---" | "...") {
                break;
            }
            source = after;
        }
        source
    }
}

fn scalar(
    text: String,
    style: ScalarStyle,
    tag: Option<&Tag>,
    start: Marker,
    source: &str,
) -> Result<Node, YamlError> {
    let mut span = span_of(start);
    let verbatim = match style {
        ScalarStyle::Plain => source.starts_with(&text).then_some(span),
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => source
            .get(1..)
            .filter(|inside| inside.starts_with(&text))
            .map(|_| Span { column: span.column.saturating_add(1), ..span }),
        ScalarStyle::Literal => {
            // The scanner's place is the first line that is not blank.
            let lines = text.trim_start_matches('\n');
            let first = lines.lines().next().filter(|line| source.starts_with(line));
            first.map(|_| {
                let blank = u32::try_from(text.len() - lines.len()).unwrap_or(u32::MAX);
                span.line = span.line.saturating_sub(blank).max(1);
                span
            })
        }
        ScalarStyle::Folded => None,
    };
    let style = match style {
        ScalarStyle::Plain if resolve(&text) != Resolved::String || is_exact_plain(&text) => Style::Plain,
        ScalarStyle::Literal => Style::Block,
        // A plain scalar that other parsers could take for something else is a string in any case.
        ScalarStyle::Plain | ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted | ScalarStyle::Folded => {
            Style::Quoted
        }
    };
    let style = tagged_style(&text, style, tag, span)?;
    Ok(Node { value: Value::Scalar(Scalar { text, style, verbatim }), span })
}

const CORE_TAGS: &str = "tag:yaml.org,2002:";

/// The style that says the same as the tag. Tags are not kept: `!!str` makes a string, the others of
/// the core schema must agree with the text.
fn tagged_style(text: &str, style: Style, tag: Option<&Tag>, span: Span) -> Result<Style, YamlError> {
    let Some(tag) = tag else { return Ok(style) };
    let full = format!("{}{}", tag.handle, tag.suffix);
    let agrees = match (full.strip_prefix(CORE_TAGS), resolve(text)) {
        (None, _) if full == "!" => return Ok(if style == Style::Block { style } else { Style::Quoted }),
        (Some("str"), _) => return Ok(if style == Style::Block { style } else { Style::Quoted }),
        (Some("null"), Resolved::Null)
        | (Some("bool"), Resolved::Bool(_))
        | (Some("int"), Resolved::Int(_))
        | (Some("float"), Resolved::Float(_)) => true,
        (Some("null" | "bool" | "int" | "float"), _) => false,
        _ => return Err(unknown_tag(&full, span)),
    };
    if agrees {
        return Ok(Style::Plain);
    }
    Err(error(
        span,
        format!("the tag {} does not fit {}: remove the tag, or change the value", brief(&full), brief(text)),
    ))
}

fn check_collection_tag(tag: Option<&Tag>, expected: &str, span: Span) -> Result<(), YamlError> {
    let Some(tag) = tag else { return Ok(()) };
    let full = format!("{}{}", tag.handle, tag.suffix);
    if full == "!" || full.strip_prefix(CORE_TAGS) == Some(expected) {
        return Ok(());
    }
    Err(unknown_tag(&full, span))
}

fn unknown_tag(tag: &str, span: Span) -> YamlError {
    error(span, format!("the tag {} is not known here: remove it", brief(tag)))
}

/// What a subtree costs.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    text: usize,
}

impl Size {
    fn of(node: &Node) -> Self {
        Self { nodes: 1, text: node.as_scalar().map_or(0, |scalar| scalar.text.len()) }
    }

    fn add(&mut self, other: Self) {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.text = self.text.saturating_add(other.text);
    }
}

/// A finished subtree.
#[derive(Clone)]
struct Built {
    node: Node,
    size: Size,
    /// Levels of lists and mappings in it.
    height: usize,
}

/// An unfinished list or mapping.
struct Frame {
    built: Built,
    anchor: usize,
    /// A key that waits for its value.
    key: Option<Node>,
}

/// Puts events together to a tree, without recursion.
#[derive(Default)]
struct Builder {
    stack: Vec<Frame>,
    anchors: HashMap<usize, Built>,
    /// What the input costs so far.
    spent: Size,
    root: Option<Node>,
}

impl Builder {
    fn spend(&mut self, size: Size, span: Span) -> Result<(), YamlError> {
        self.spent.add(size);
        if self.spent.nodes > MAX_NODES {
            return Err(error(
                span,
                format!(
                    "has more than {MAX_NODES} nodes, counting what aliases repeat: split it, or use fewer aliases"
                ),
            ));
        }
        if self.spent.text > MAX_TEXT {
            return Err(error(
                span,
                format!(
                    "has more than {MAX_TEXT} bytes of text, counting what aliases repeat: use fewer aliases"
                ),
            ));
        }
        Ok(())
    }

    fn check_depth(&self, below: usize, span: Span) -> Result<(), YamlError> {
        if self.stack.len() + below > MAX_DEPTH {
            return Err(error(span, format!("is nested deeper than {MAX_DEPTH} levels: make it flatter")));
        }
        Ok(())
    }

    fn begin(&mut self, value: Value, anchor: usize, span: Span) -> Result<(), YamlError> {
        let node = Node { value, span };
        self.check_key(&node)?;
        self.check_depth(1, span)?;
        let size = Size::of(&node);
        self.spend(size, span)?;
        self.stack.push(Frame { built: Built { node, size, height: 1 }, anchor, key: None });
        Ok(())
    }

    fn end(&mut self) -> Result<(), YamlError> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        check_duplicates(&frame.built.node)?;
        self.attach(frame.built, frame.anchor)
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<(), YamlError> {
        let Some(mut copy) = self.anchors.get(&anchor).cloned() else {
            return Err(error(
                span,
                "the alias names an anchor of another document, or one that it is part of",
            ));
        };
        copy.node.span = span;
        self.check_key(&copy.node)?;
        self.check_depth(copy.height, span)?;
        self.add(copy, 0)
    }

    /// Takes a subtree that is not counted yet.
    fn add(&mut self, built: Built, anchor: usize) -> Result<(), YamlError> {
        self.check_key(&built.node)?;
        self.spend(built.size, built.node.span)?;
        self.attach(built, anchor)
    }

    /// Whether a node that comes next would be a key, and may be one.
    fn check_key(&self, node: &Node) -> Result<(), YamlError> {
        let is_key = self
            .stack
            .last()
            .is_some_and(|frame| frame.key.is_none() && matches!(frame.built.node.value, Value::Mapping(_)));
        match &node.value {
            _ if !is_key => Ok(()),
            Value::Scalar(_) if is_nothing(node) => {
                Err(error(node.span, "the key is empty: write one, or \"\" for the empty string"))
            }
            Value::Scalar(_) => Ok(()),
            Value::Sequence(_) | Value::Mapping(_) => Err(error(
                node.span,
                format!("a key must be a scalar, this is {}; {QUOTE_PLACEHOLDER}", node.kind()),
            )),
        }
    }

    /// Puts a finished and counted subtree where it belongs.
    fn attach(&mut self, built: Built, anchor: usize) -> Result<(), YamlError> {
        if anchor != 0 {
            self.spend(built.size, built.node.span)?;
            self.anchors.insert(anchor, built.clone());
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(built.node);
            return Ok(());
        };
        frame.built.size.add(built.size);
        frame.built.height = frame.built.height.max(built.height + 1);
        match (&mut frame.built.node.value, frame.key.take()) {
            (Value::Mapping(entries), Some(key)) => entries.push((key, built.node)),
            (Value::Mapping(_), None) => frame.key = Some(built.node),
            (Value::Sequence(items), _) => items.push(built.node),
            (Value::Scalar(_), _) => {}
        }
        Ok(())
    }
}

fn check_duplicates(node: &Node) -> Result<(), YamlError> {
    let mut seen = HashMap::new();
    for (key, _) in node.as_mapping().unwrap_or_default() {
        let text = key.as_scalar().map_or("", |scalar| scalar.text.as_str());
        if let Some(first) = seen.insert(text, key.span) {
            let message =
                format!("the key {} is here twice, first on line {}: remove one", brief(text), first.line);
            return Err(error(key.span, message));
        }
    }
    Ok(())
}
