//! From a declared template to literals and slots.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::placeholder::{MAX_VARIABLE_NAME, Part, is_variable_name, split};
use super::values::{is_less, shown, typed};
use super::{
    CompiledBody, CompiledFile, CompiledTemplate, FileSpec, MAX_PROBLEMS, Problem, Segment, Slot,
    SlotEncoding, SlotSource, TemplateSpec, TypedValue, Variable, VariableSpec, VariableType,
};
use crate::yaml::{Node, Piece, Span, Tree, Value, brief, did_you_mean, emit};

/// Most variables of a template.
pub const MAX_VARIABLES: usize = 256;
/// Most values in a variable's `enum`.
pub const MAX_ENUM: usize = 1000;
/// Most bytes of literal text in a template's compiled files together.
pub const MAX_LITERALS: usize = 3 << 20;
/// Most placeholders in a template.
pub const MAX_SLOTS: usize = 4096;
/// Most files of a template.
pub const MAX_FILES: usize = 64;
/// Most characters of a key in the path of a field.
const MAX_SHOWN_KEY: usize = 80;
/// Content type of `spec.config`.
pub const CONFIG_CONTENT_TYPE: &str = "text/yaml";
/// Content type of one of `spec.files` that names none.
pub const DEFAULT_CONTENT_TYPE: &str = "text/plain";

/// Compiles a template.
///
/// # Errors
/// What is wrong with it (variables, placeholders, names of files, bounds), up to [`MAX_PROBLEMS`].
pub fn compile(spec: &TemplateSpec) -> Result<CompiledTemplate, Vec<Problem>> {
    let mut compiler = Compiler::default();
    compiler.variables(spec);
    if spec.config.is_none() && spec.files.is_empty() {
        compiler.problem(
            "spec",
            spec.span,
            "has neither `config` nor `files`: a template gives at least one file",
        );
    }
    let mut files = Vec::new();
    files.extend(spec.config.as_ref().and_then(|config| compiler.config(config)));
    files.extend(compiler.files(&spec.files));
    compiler.check_bounds(spec.span);
    let used = compiler.used;
    for variable in &mut compiler.variables {
        variable.used = used.contains(&variable.name);
    }
    if compiler.problems.is_empty() {
        Ok(CompiledTemplate { variables: compiler.variables, files })
    } else {
        Err(compiler.problems)
    }
}

/// Checks the name of a file in an agent's config map. OpAMP allows the empty name too; here a file has
/// one.
pub(crate) fn check_file_name(name: &str) -> Result<(), String> {
    const LONGEST: usize = 255;
    if name.is_empty() || name.len() > LONGEST || name.contains(char::is_control) {
        return Err(format!(
            "{} is not a file name: it has 1 to {LONGEST} bytes and no control characters",
            brief(name)
        ));
    }
    Ok(())
}

#[derive(Default)]
struct Compiler {
    /// All variables that could be read, to know what placeholders may name.
    variables: Vec<Variable>,
    names: BTreeSet<String>,
    used: BTreeSet<String>,
    placeholders: usize,
    literals: usize,
    problems: Vec<Problem>,
}

impl Compiler {
    fn is_full(&self) -> bool {
        self.problems.len() >= MAX_PROBLEMS
    }

    fn problem(&mut self, field: &str, span: Span, message: impl Into<String>) {
        if self.is_full() {
            return;
        }
        self.problems.push(Problem { field: field.to_owned(), message: message.into(), span: Some(span) });
    }

    fn variables(&mut self, spec: &TemplateSpec) {
        if spec.variables.len() > MAX_VARIABLES {
            self.problem(
                "spec.variables",
                spec.span,
                format!("has more than {MAX_VARIABLES} variables: remove some"),
            );
            return;
        }
        for (n, declared) in spec.variables.iter().enumerate() {
            let field = format!("spec.variables[{n}]");
            let name = &declared.name;
            if !is_variable_name(&name.value) {
                let message = format!(
                    "{} is not a name for a variable: use letters, digits and `_`, at most {MAX_VARIABLE_NAME}, \
                     beginning with no digit, and not `agent`",
                    brief(&name.value)
                );
                self.problem(&format!("{field}.name"), name.span, message);
            } else if !self.names.insert(name.value.clone()) {
                self.problem(
                    &format!("{field}.name"),
                    name.span,
                    format!("{:?} is declared twice: remove one", name.value),
                );
            }
            let variable = self.variable(declared, &field);
            self.variables.push(variable);
        }
    }

    fn variable(&mut self, declared: &VariableSpec, field: &str) -> Variable {
        let kind = declared.kind;
        let mut variable = Variable {
            name: declared.name.value.clone(),
            kind,
            required: declared.required,
            one_of: Vec::new(),
            default: None,
            min: None,
            max: None,
            used: false,
        };
        for (bound, node) in [("min", &declared.min), ("max", &declared.max)] {
            let Some(node) = node else { continue };
            let field = format!("{field}.{bound}");
            if !matches!(kind, VariableType::Int | VariableType::Float) {
                self.problem(
                    &field,
                    node.span,
                    format!("is only for int and float, this is a {kind}: remove it"),
                );
                continue;
            }
            let value = self.typed(kind, node, &field);
            *(if bound == "min" { &mut variable.min } else { &mut variable.max }) = value;
        }
        if let (Some(min), Some(max), Some(node)) = (&variable.min, &variable.max, &declared.max)
            && is_less(max, min)
        {
            let message = format!("{} is below min, which is {}", shown(max), shown(min));
            self.problem(&format!("{field}.max"), node.span, message);
            return variable;
        }
        if let Some(node) = &declared.one_of {
            variable.one_of = self.one_of(&variable, node, &format!("{field}.enum"));
        }
        if let Some(node) = &declared.default {
            let field = format!("{field}.default");
            variable.default = self.typed(kind, node, &field);
            self.check(&variable, variable.default.as_ref(), node.span, &field);
        }
        variable
    }

    fn one_of(&mut self, variable: &Variable, node: &Node, field: &str) -> Vec<TypedValue> {
        let mut values = Vec::new();
        let items = node.as_sequence().unwrap_or_default();
        if items.is_empty() || items.len() > MAX_ENUM {
            self.problem(field, node.span, format!("must be a list of 1 to {MAX_ENUM} values"));
            return values;
        }
        for (n, item) in items.iter().enumerate() {
            let field = format!("{field}[{n}]");
            let Some(value) = self.typed(variable.kind, item, &field) else { continue };
            if values.contains(&value) {
                self.problem(&field, item.span, format!("{} is here twice: remove one", shown(&value)));
                continue;
            }
            self.check(variable, Some(&value), item.span, &field);
            values.push(value);
        }
        values
    }

    fn typed(&mut self, kind: VariableType, node: &Node, field: &str) -> Option<TypedValue> {
        typed(kind, node).map_err(|message| self.problem(field, node.span, message)).ok()
    }

    fn check(&mut self, variable: &Variable, value: Option<&TypedValue>, span: Span, field: &str) {
        if let Some(Err(message)) = value.map(|value| variable.check(value)) {
            self.problem(field, span, message);
        }
    }

    fn config(&mut self, config: &Node) -> Option<CompiledFile> {
        if config.as_mapping().is_none() {
            self.problem("spec.config", config.span, format!("must be a mapping, this is {}", config.kind()));
            return None;
        }
        let tree = self.tree(config, &mut "spec.config".to_owned());
        let mut body = Body::default();
        for piece in emit(tree) {
            match piece {
                Piece::Text(text) => body.literal(text),
                Piece::Slot(slot) => body.slot(slot),
            }
        }
        Some(self.finish(body, None, CONFIG_CONTENT_TYPE))
    }

    fn tree(&mut self, node: &Node, path: &mut String) -> Tree<Slot> {
        let length = path.len();
        match &node.value {
            Value::Scalar(_) => self.scalar(node, path),
            Value::Sequence(items) => {
                let items = items.iter().enumerate().map(|(n, item)| {
                    path.push_str(&format!("[{n}]"));
                    let tree = self.tree(item, path);
                    path.truncate(length);
                    tree
                });
                Tree::Sequence(items.collect())
            }
            Value::Mapping(entries) => {
                let mut seen = HashSet::new();
                let entries = entries.iter().map(|(key, value)| {
                    path.push('.');
                    path.extend(
                        key.as_scalar().map_or("", |key| key.text.as_str()).chars().take(MAX_SHOWN_KEY),
                    );
                    let (key, place) = (self.scalar(key, path), key.span);
                    if !seen.insert(key_pieces(&key)) {
                        self.problem(
                            path,
                            place,
                            "this key is in the mapping twice, written otherwise: remove one",
                        );
                    }
                    let entry = (key, self.tree(value, path));
                    path.truncate(length);
                    entry
                });
                Tree::Mapping(entries.collect())
            }
        }
    }

    fn scalar(&mut self, node: &Node, field: &str) -> Tree<Slot> {
        let text = node.as_scalar().map_or("", |scalar| scalar.text.as_str());
        if !text.contains("{{") {
            return Tree::same(node);
        }
        let mut parts = self.split(node, text, field);
        let slot = |source, encoding| Slot { source, encoding };
        match (parts.pop(), parts.is_empty()) {
            (Some(Part::Source(source, _)), true) => Tree::Slot(slot(source, SlotEncoding::YamlScalar)),
            (last, _) => {
                let pieces = parts.into_iter().chain(last).map(|part| match part {
                    Part::Text(text) => Piece::Text(text),
                    Part::Source(source, _) => Piece::Slot(slot(source, SlotEncoding::YamlQuoted)),
                });
                Tree::String(pieces.collect())
            }
        }
    }

    fn files(&mut self, files: &[FileSpec]) -> Vec<CompiledFile> {
        if files.len() > MAX_FILES {
            let span = files.last().map_or(Span::START, |file| file.name.span);
            self.problem("spec.files", span, format!("has more than {MAX_FILES} files: remove some"));
            return Vec::new();
        }
        let mut names = BTreeSet::new();
        let files = files.iter().enumerate().map(|(n, file)| {
            let field = format!("spec.files[{n}]");
            if let Err(message) = check_file_name(&file.name.value) {
                self.problem(&format!("{field}.name"), file.name.span, message);
            } else if !names.insert(file.name.value.as_str()) {
                let message =
                    format!("{} is here twice: give each file its own name", brief(&file.name.value));
                self.problem(&format!("{field}.name"), file.name.span, message);
            }
            if !is_content_type(&file.content_type.value) {
                let message =
                    format!("{} is not a MIME type such as text/yaml", brief(&file.content_type.value));
                self.problem(&format!("{field}.content_type"), file.content_type.span, message);
            }
            let body = self.text(&file.content, &format!("{field}.content"));
            self.finish(body, Some(file.name.value.clone()), &file.content_type.value)
        });
        files.collect()
    }

    fn text(&mut self, content: &Node, field: &str) -> Body {
        let mut body = Body::default();
        let Some(text) = content.as_str() else {
            self.problem(
                field,
                content.span,
                format!("must be a string, this is {}: put it in quotes", content.kind()),
            );
            return body;
        };
        if let Some(offset) = text.find('\0') {
            self.problem(field, content.place_of(offset), "has a NUL character: remove it");
        }
        for part in self.split(content, text, field) {
            match part {
                Part::Text(text) => body.literal(text),
                Part::Source(source, _) => body.slot(Slot { source, encoding: SlotEncoding::Text }),
            }
        }
        body
    }

    /// The parts of a scalar's text; nothing if it has bad placeholders.
    fn split(&mut self, node: &Node, text: &str, field: &str) -> Vec<Part> {
        let parts = split(text).unwrap_or_else(|errors| {
            for error in errors {
                self.problem(field, node.place_of(error.offset), error.message);
            }
            Vec::new()
        });
        for part in &parts {
            let Part::Source(source, offset) = part else { continue };
            self.placeholders += 1;
            let SlotSource::Variable(name) = source else { continue };
            if !self.names.contains(name) && !self.is_full() {
                let hint = did_you_mean(name, self.names.iter().map(String::as_str));
                let message = format!(
                    "uses the variable {name:?}, which spec.variables does not declare: declare it{hint}"
                );
                self.problem(field, node.place_of(*offset), message);
            }
            self.used.insert(name.clone());
        }
        parts
    }

    fn finish(&mut self, body: Body, name: Option<String>, content_type: &str) -> CompiledFile {
        let literal = |segment: &Segment| match segment {
            Segment::Literal(text) => text.len(),
            Segment::Slot(_) => 0,
        };
        self.literals += body.segments.iter().map(literal).sum::<usize>();
        let Body { segments, slots, .. } = body;
        let body = CompiledBody { segments };
        let digest = CompiledFile::digest_of(content_type, &body, &slots);
        CompiledFile { name, content_type: content_type.to_owned(), body, slots, digest }
    }

    fn check_bounds(&mut self, span: Span) {
        if self.literals > MAX_LITERALS {
            self.problem(
                "spec",
                span,
                format!("gives more than {MAX_LITERALS} bytes of text: split it into several templates"),
            );
        }
        if self.placeholders > MAX_SLOTS {
            self.problem(
                "spec",
                span,
                format!("has more than {MAX_SLOTS} placeholders: split it into several templates"),
            );
        }
    }
}

fn is_content_type(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    text.len() <= 255 && text.split_once('/').is_some_and(|(kind, rest)| part(kind) && part(rest))
}

/// What a key is when it is rendered, however it is written.
fn key_pieces(key: &Tree<Slot>) -> Vec<Piece<Slot>> {
    match key {
        Tree::Plain(text) => vec![Piece::Text(text.clone())],
        Tree::String(pieces) => pieces.clone(),
        Tree::Slot(slot) => vec![Piece::Slot(slot.clone())],
        Tree::Sequence(_) | Tree::Mapping(_) => Vec::new(),
    }
}

/// A body in the making. Equal slots are one.
#[derive(Default)]
struct Body {
    segments: Vec<Segment>,
    slots: Vec<Slot>,
    numbers: HashMap<Slot, u32>,
}

impl Body {
    fn literal(&mut self, text: String) {
        self.segments.push(Segment::Literal(text));
    }

    fn slot(&mut self, slot: Slot) {
        let next = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(slot.clone()).or_insert_with(|| {
            self.slots.push(slot);
            next
        });
        self.segments.push(Segment::Slot(number));
    }
}
