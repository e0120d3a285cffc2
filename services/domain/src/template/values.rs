//! Values for the variables of a template: types, enum, min and max.

use std::collections::BTreeMap;

use super::{MAX_PROBLEMS, Problem, TypedValue, Variable, VariableType};
use crate::yaml::{Located, Node, Resolved, Span, brief, did_you_mean, resolve};

/// Longest string value, in bytes.
pub const MAX_VALUE: usize = 64 << 10;

/// Most characters of a name in the path of a field.
const MAX_SHOWN_NAME: usize = 80;

/// The values that a manifest gives: `spec.values`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenValues {
    /// The values as written.
    pub entries: Vec<GivenValue>,
    /// Where they stand; where the spec stands if there are none.
    pub span: Span,
}

/// A value that a manifest gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenValue {
    /// The variable's name.
    pub name: Located<String>,
    /// The value.
    pub value: Node,
}

/// Checks the values of a manifest against a template's variables and gives them their types.
/// Defaults are not filled in: what is returned is what was given.
///
/// # Errors
/// Up to [`MAX_PROBLEMS`] of: unknown variable, wrong type, value outside enum, min or max, and
/// variable without a value that is required, or used and has no default.
pub fn check_values(
    variables: &[Variable],
    given: &GivenValues,
) -> Result<BTreeMap<String, TypedValue>, Vec<Problem>> {
    let values = given.entries.iter().map(|entry| {
        (entry.name.value.as_str(), (entry.name.span, entry.value.span), |kind| typed(kind, &entry.value))
    });
    let spanned = values.map(|(name, spans, typed)| (name, Some(spans), typed));
    check(variables, spanned, Some(given.span))
}

/// Checks values that are stored already, as another version of the template comes. A whole number
/// becomes a float where the variable is one now.
///
/// # Errors
/// As [`check_values`], without places.
pub fn check_typed_values(
    variables: &[Variable],
    values: &BTreeMap<String, TypedValue>,
) -> Result<BTreeMap<String, TypedValue>, Vec<Problem>> {
    let values = values.iter().map(|(name, value)| (name.as_str(), None, |kind| retyped(kind, value)));
    check(variables, values, None)
}

fn check<'a, F: FnOnce(VariableType) -> Result<TypedValue, String>>(
    variables: &[Variable],
    given: impl Iterator<Item = (&'a str, Option<(Span, Span)>, F)>,
    all: Option<Span>,
) -> Result<BTreeMap<String, TypedValue>, Vec<Problem>> {
    let mut values = BTreeMap::new();
    let mut mentioned = Vec::new();
    let mut problems = Vec::new();
    for (name, spans, typed) in given {
        if problems.len() >= MAX_PROBLEMS {
            return Err(problems);
        }
        let problem = |message, span| {
            let shown: String = name.chars().take(MAX_SHOWN_NAME).collect();
            Problem { field: format!("spec.values.{shown}"), message, span }
        };
        let Some(variable) = variables.iter().find(|variable| variable.name == name) else {
            let hint = did_you_mean(name, variables.iter().map(|variable| variable.name.as_str()));
            let message = format!("the template has no variable {}{hint}", brief(name));
            problems.push(problem(message, spans.map(|(name, _)| name)));
            continue;
        };
        mentioned.push(name);
        match typed(variable.kind).and_then(|value| variable.check(&value).map(|()| value)) {
            Ok(value) => {
                values.insert(name.to_owned(), value);
            }
            Err(message) => problems.push(problem(message, spans.map(|(_, value)| value))),
        }
    }
    let missing = variables.iter().filter(|variable| {
        (variable.required || variable.used)
            && variable.default.is_none()
            && !mentioned.contains(&variable.name.as_str())
    });
    problems.extend(missing.map(|variable| {
        let message = if variable.required {
            format!("is required: give it a value ({})", variable.takes())
        } else {
            format!(
                "is used by the template and has no default: give it a value ({}), or the variable a default",
                variable.takes()
            )
        };
        Problem { field: format!("spec.values.{}", variable.name), message, span: all }
    }));
    problems.truncate(MAX_PROBLEMS);
    if problems.is_empty() { Ok(values) } else { Err(problems) }
}

impl Variable {
    /// Checks a value of the variable's type against enum, min and max.
    pub(super) fn check(&self, value: &TypedValue) -> Result<(), String> {
        if !self.one_of.is_empty() && !self.one_of.contains(value) {
            let hint = match value {
                TypedValue::String(text) => {
                    did_you_mean(text, self.one_of.iter().filter_map(TypedValue::as_string))
                }
                _ => String::new(),
            };
            return Err(format!("{} is not one of {}{hint}", shown(value), list(&self.one_of)));
        }
        match (&self.min, &self.max) {
            (Some(min), _) if is_less(value, min) => {
                Err(format!("{} is below the minimum {}", shown(value), shown(min)))
            }
            (_, Some(max)) if is_less(max, value) => {
                Err(format!("{} is above the maximum {}", shown(value), shown(max)))
            }
            _ => Ok(()),
        }
    }

    /// What values it takes, for messages.
    fn takes(&self) -> String {
        if self.one_of.is_empty() { self.kind.to_string() } else { format!("one of {}", list(&self.one_of)) }
    }
}

impl TypedValue {
    fn as_string(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            Self::Bool(_) | Self::Int(_) | Self::Float(_) => None,
        }
    }
}

/// Whether the first number is less than the second, of the same type.
pub(super) fn is_less(a: &TypedValue, b: &TypedValue) -> bool {
    match (a, b) {
        (TypedValue::Int(a), TypedValue::Int(b)) => a < b,
        (TypedValue::Float(a), TypedValue::Float(b)) => a < b,
        _ => false,
    }
}

/// A value as messages show it.
pub(super) fn shown(value: &TypedValue) -> String {
    match value {
        TypedValue::String(text) => brief(text),
        other => other.text(),
    }
}

fn list(values: &[TypedValue]) -> String {
    const MOST: usize = 20;
    let mut text = values.iter().take(MOST).map(shown).collect::<Vec<_>>().join(", ");
    if values.len() > MOST {
        text.push_str(", ...");
    }
    text
}

/// A node as a value of this type.
pub(super) fn typed(kind: VariableType, node: &Node) -> Result<TypedValue, String> {
    let value = match kind {
        VariableType::String => node.as_str().map(|text| TypedValue::String(text.to_owned())),
        VariableType::Int => node.as_i64().map(TypedValue::Int),
        VariableType::Float => node.as_f64().filter(|number| number.is_finite()).map(TypedValue::Float),
        VariableType::Bool => node.as_bool().map(TypedValue::Bool),
    };
    value.ok_or_else(|| type_error(kind, node)).and_then(bounded)
}

/// A value as one of this type.
fn retyped(kind: VariableType, value: &TypedValue) -> Result<TypedValue, String> {
    match (kind, value) {
        (VariableType::Float, TypedValue::Int(number)) => Ok(TypedValue::Float(*number as f64)),
        (kind, value) if value.kind() == kind => bounded(value.clone()),
        _ => Err(format!("must be {}, this is the {} {}", kind.noun(), value.kind(), shown(value))),
    }
}

fn bounded(value: TypedValue) -> Result<TypedValue, String> {
    match value {
        TypedValue::String(text) if text.len() > MAX_VALUE => {
            Err(format!("has {} bytes: a value has at most {MAX_VALUE}", text.len()))
        }
        TypedValue::String(text) if text.contains('\0') => Err("has a NUL character: remove it".to_owned()),
        value => Ok(value),
    }
}

impl VariableType {
    fn noun(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Int => "an int",
            Self::Float => "a float",
            Self::Bool => "a bool",
        }
    }
}

fn type_error(kind: VariableType, node: &Node) -> String {
    let must = kind.noun();
    let Some(scalar) = node.as_scalar() else { return format!("must be {must}, this is {}", node.kind()) };
    let found =
        if node.is_null() { "empty".to_owned() } else { format!("{} {}", node.kind(), brief(&scalar.text)) };
    let is_string = scalar.resolve() == Resolved::String;
    let without_quotes = if is_string { resolve(&scalar.text) } else { Resolved::String };
    let fix = match (kind, without_quotes) {
        _ if node.is_null() => "give it a value, or remove it",
        (VariableType::String, _) => "put it in quotes",
        (VariableType::Int | VariableType::Float, Resolved::Int(_))
        | (VariableType::Float, Resolved::Float(_))
        | (VariableType::Bool, Resolved::Bool(_)) => "remove the quotes",
        (VariableType::Bool, _) => "write true or false",
        (VariableType::Int, _) => "write a whole number of 64 bits, such as 10",
        (VariableType::Float, _) => "write a finite number, such as 0.5",
    };
    format!("must be {must}, this is {found}: {fix}")
}
