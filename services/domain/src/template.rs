//! Config templates: compiled once into literal text and typed slots, then only concatenated.
//!
//! A template has typed variables and gives files: its `config`, a YAML mapping in which
//! placeholders are substituted on the tree, and `files`, texts of any kind. A placeholder is
//! `{{.name}}`, `{{.agent.attributes["key"]}}` or `{{.agent.labels["key"]}}`; `{{"text"}}` stands for
//! the text itself, so `{{"{{"}}` is a literal `{{`. There are no conditions, loops or functions.

mod compile;
mod placeholder;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::yaml::{Located, Node, Span, escape};

pub(crate) use compile::check_file_name;
pub use compile::{
    CONFIG_CONTENT_TYPE, DEFAULT_CONTENT_TYPE, MAX_ENUM, MAX_FILES, MAX_LITERALS, MAX_SLOTS, MAX_VARIABLES,
    compile,
};
pub use values::{GivenValue, GivenValues, MAX_VALUE, check_typed_values, check_values};

/// A template as declared, its syntax checked and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSpec {
    /// `spec.variables`.
    pub variables: Vec<VariableSpec>,
    /// `spec.config`.
    pub config: Option<Node>,
    /// `spec.files`.
    pub files: Vec<FileSpec>,
    /// Where the spec stands.
    pub span: Span,
}

/// One of `spec.variables` as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariableSpec {
    /// `name`.
    pub name: Located<String>,
    /// `type`.
    pub kind: VariableType,
    /// `required`, false where absent.
    pub required: bool,
    /// `enum`: a list.
    pub one_of: Option<Node>,
    /// `default`.
    pub default: Option<Node>,
    /// `min`.
    pub min: Option<Node>,
    /// `max`.
    pub max: Option<Node>,
}

/// One of `spec.files` as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSpec {
    /// `name`.
    pub name: Located<String>,
    /// `content_type`.
    pub content_type: Located<String>,
    /// `content`: a string.
    pub content: Node,
}

/// Something that is wrong with a template or with values, and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    /// Path of the field, such as `spec.variables[0].min`.
    pub field: String,
    /// What is wrong, and the fix.
    pub message: String,
    /// Where, if it was read from a text.
    pub span: Option<Span>,
}

/// Most problems that are reported at once.
pub const MAX_PROBLEMS: usize = 20;

/// Type of a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VariableType {
    /// Text.
    String,
    /// A whole number of 64 bits.
    Int,
    /// A finite number of double precision.
    Float,
    /// `true` or `false`.
    Bool,
}

impl VariableType {
    /// All types.
    pub const ALL: [Self; 4] = [Self::String, Self::Int, Self::Float, Self::Bool];

    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Int => "int",
            Self::Float => "float",
            Self::Bool => "bool",
        }
    }
}

impl fmt::Display for VariableType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A variable of a template: what values it takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its type. `one_of`, `default`, `min` and `max` are of this type.
    #[serde(rename = "type")]
    pub kind: VariableType,
    /// Whether an assignment must give a value where there is no default.
    pub required: bool,
    /// The values it may have; any if there are none.
    #[serde(rename = "enum", default, skip_serializing_if = "Vec::is_empty")]
    pub one_of: Vec<TypedValue>,
    /// Its value where an assignment gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<TypedValue>,
    /// Least value, of a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<TypedValue>,
    /// Greatest value, of a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<TypedValue>,
    /// Whether a placeholder uses it; then it must have a value or a default.
    pub used: bool,
}

/// A value of a variable or of an agent's attribute. In JSON it is the plain value; a float keeps its
/// decimal point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TypedValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A finite number.
    Float(f64),
    /// Text.
    String(String),
}

impl TypedValue {
    /// Its type.
    pub fn kind(&self) -> VariableType {
        match self {
            Self::Bool(_) => VariableType::Bool,
            Self::Int(_) => VariableType::Int,
            Self::Float(_) => VariableType::Float,
            Self::String(_) => VariableType::String,
        }
    }

    /// The form that hashes are made over. It never changes: `s:` and the text; `i:` and the decimal
    /// number; `f:` and the 16 lower-case hexadecimal digits of the IEEE 754 double; `b:true` or
    /// `b:false`.
    pub fn canonical(&self) -> String {
        match self {
            Self::String(text) => format!("s:{text}"),
            Self::Int(number) => format!("i:{number}"),
            Self::Float(number) => format!("f:{:016x}", number.to_bits()),
            Self::Bool(flag) => format!("b:{flag}"),
        }
    }

    /// The value as text: a string as it is, a float always with a decimal point, so that every
    /// version of YAML reads a float.
    pub fn text(&self) -> String {
        match self {
            Self::String(text) => text.clone(),
            Self::Int(number) => number.to_string(),
            Self::Float(number) => float_text(*number),
            Self::Bool(flag) => flag.to_string(),
        }
    }
}

fn float_text(number: f64) -> String {
    let text = format!("{number:?}");
    match text.split_once('e') {
        None => text,
        Some((mantissa, exponent)) => {
            let point = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with('-') { "" } else { "+" };
            format!("{mantissa}{point}e{sign}{exponent}")
        }
    }
}

/// A template ready to be rendered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompiledTemplate {
    /// Its variables, as declared.
    pub variables: Vec<Variable>,
    /// Its files: `config` first, then `files` as declared.
    pub files: Vec<CompiledFile>,
}

/// A file of a [`CompiledTemplate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompiledFile {
    /// Its key in the agent's config map. `None` for `config`: the assignment names it, else it has the
    /// template's name.
    pub name: Option<String>,
    /// MIME type.
    pub content_type: String,
    /// Text and slots.
    pub body: CompiledBody,
    /// What goes into the slots.
    pub slots: Vec<Slot>,
    /// Names content type, body and slots, see [`CompiledFile::digest_of`].
    pub digest: Digest,
}

/// Text with numbered gaps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CompiledBody {
    /// Text and gaps in order.
    pub segments: Vec<Segment>,
}

/// A part of a [`CompiledBody`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Segment {
    /// Text as it stands.
    Literal(String),
    /// A gap: index into the file's slots. One slot may fill several gaps.
    Slot(u32),
}

/// What goes into a gap, and how it is written there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Where its value comes from.
    pub source: SlotSource,
    /// How it is written.
    pub encoding: SlotEncoding,
}

/// Where the value of a [`Slot`] comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotSource {
    /// A variable of the template.
    Variable(String),
    /// An attribute that the agent reports.
    AgentAttribute(String),
    /// A label that operators gave the agent.
    AgentLabel(String),
}

impl fmt::Display for SlotSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "variable {name:?}"),
            Self::AgentAttribute(key) => write!(f, "agent attribute {key:?}"),
            Self::AgentLabel(key) => write!(f, "agent label {key:?}"),
        }
    }
}

/// How a value is written into a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotEncoding {
    /// As a whole YAML scalar of the value's type, on one line.
    YamlScalar,
    /// Inside a double-quoted YAML scalar.
    YamlQuoted,
    /// Verbatim.
    Text,
}

impl SlotEncoding {
    /// The text that stands for this value in the gap.
    pub fn encode(self, value: &TypedValue) -> String {
        let (text, is_string) = (value.text(), value.kind() == VariableType::String);
        match self {
            Self::Text => text,
            Self::YamlScalar if !is_string || is_safe_plain(&text) => text,
            Self::YamlScalar | Self::YamlQuoted => {
                let mut quoted = String::with_capacity(text.len() + 2);
                let quote = if self == Self::YamlScalar { "\"" } else { "" };
                quoted.push_str(quote);
                escape(&text, &mut quoted);
                quoted.push_str(quote);
                quoted
            }
        }
    }
}

/// Whether every version of YAML takes this text without quotes for a string: letters, digits and
/// `_./-`, beginning with a letter or `/`, and no word for a bool, null or a number.
pub(crate) fn is_safe_plain(text: &str) -> bool {
    const WORDS: [&str; 13] =
        ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nil", "nan", "inf", "infinity"];
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte))
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

impl CompiledFile {
    /// The digest of a file's content type, body and slots. It never changes: [`Digest::of_parts`]
    /// over `muster-compiled-file-v1`; the content type; the number of segments; each segment as `L` and
    /// its text, or `S` and its number; the number of slots; each slot as `variable`, `attribute` or
    /// `label`, its name or key, and `yaml-scalar`, `yaml-quoted` or `text`. Each is a part of its own;
    /// numbers are decimal.
    pub fn digest_of(content_type: &str, body: &CompiledBody, slots: &[Slot]) -> Digest {
        let segments = body.segments.iter().flat_map(|segment| match segment {
            Segment::Literal(text) => ["L".to_owned(), text.clone()],
            Segment::Slot(number) => ["S".to_owned(), number.to_string()],
        });
        let slot_parts = slots.iter().flat_map(|slot| {
            let (kind, name) = match &slot.source {
                SlotSource::Variable(name) => ("variable", name),
                SlotSource::AgentAttribute(key) => ("attribute", key),
                SlotSource::AgentLabel(key) => ("label", key),
            };
            let encoding = match slot.encoding {
                SlotEncoding::YamlScalar => "yaml-scalar",
                SlotEncoding::YamlQuoted => "yaml-quoted",
                SlotEncoding::Text => "text",
            };
            [kind.to_owned(), name.clone(), encoding.to_owned()]
        });
        let head =
            ["muster-compiled-file-v1".to_owned(), content_type.to_owned(), body.segments.len().to_string()];
        let parts: Vec<String> =
            head.into_iter().chain(segments).chain([slots.len().to_string()]).chain(slot_parts).collect();
        Digest::of_parts(parts.iter().map(String::as_bytes))
    }
}

/// The body with these texts in its gaps. A gap without a text stays empty.
pub fn render(body: &CompiledBody, values: &[String]) -> String {
    let text = |segment| match segment {
        &Segment::Slot(number) => {
            usize::try_from(number).ok().and_then(|n| values.get(n)).map_or("", String::as_str)
        }
        Segment::Literal(text) => text.as_str(),
    };
    body.segments.iter().map(text).collect()
}
