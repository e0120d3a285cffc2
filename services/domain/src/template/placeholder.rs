//! Placeholders in a text.

use super::{MAX_PROBLEMS, SlotSource};
use crate::yaml::brief;

/// A part of a text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// Text, never empty, escapes undone.
    Text(String),
    /// A placeholder, and the byte at which it begins.
    Source(SlotSource, usize),
}

/// A `{{` that is no placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlaceholderError {
    /// The byte at which it begins.
    pub(super) offset: usize,
    /// What is wrong, and the fix.
    pub(super) message: String,
}

/// Splits a text at its placeholders, or says up to [`MAX_PROBLEMS`] things that are wrong with them.
pub(super) fn split(text: &str) -> Result<Vec<Part>, Vec<PlaceholderError>> {
    let mut parts = Vec::new();
    let mut errors = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        literal.push_str(before);
        if after.starts_with('{') {
            // No placeholder begins with a brace: this one is text.
            literal.push('{');
            rest = &rest[before.len() + 1..];
            continue;
        }
        let offset = text.len() - after.len() - 2;
        let mut cursor = Cursor { rest: after };
        match cursor.placeholder() {
            Ok(Inside::Literal(inside)) => literal.push_str(&inside),
            Ok(Inside::Source(source)) => {
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(Part::Source(source, offset));
            }
            Err(message) => {
                errors.push(PlaceholderError { offset, message });
                if errors.len() >= MAX_PROBLEMS {
                    return Err(errors);
                }
                cursor.rest = after.split_once("}}").map_or("", |(_, rest)| rest);
            }
        }
        rest = cursor.rest;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Text(literal));
    }
    if errors.is_empty() { Ok(parts) } else { Err(errors) }
}

/// What stands between `{{` and `}}`.
enum Inside {
    Literal(String),
    Source(SlotSource),
}

struct Cursor<'a> {
    rest: &'a str,
}

impl Cursor<'_> {
    /// What follows a `{{`, the closing `}}` included.
    fn placeholder(&mut self) -> Result<Inside, String> {
        let whole = self.rest;
        let Some(end) = whole.find("}}") else {
            return Err(
                "`{{` is not closed: close it with `}}`, or write {{\"{{\"}} for a literal `{{`".to_owned()
            );
        };
        let inside = self.inside()?;
        self.spaces();
        match inside {
            Some(inside) if self.eat("}}") => Ok(inside),
            _ => Err(format!(
                "{} is not a placeholder: there are only {{{{.name}}}}, {{{{.agent.attributes[\"key\"]}}}}, \
                 {{{{.agent.labels[\"key\"]}}}} and {{{{\"text\"}}}} for literal text; no conditions, loops or functions",
                brief(whole[..end].trim())
            )),
        }
    }

    fn inside(&mut self) -> Result<Option<Inside>, String> {
        self.spaces();
        if let Some(text) = self.quoted() {
            return Ok(Some(Inside::Literal(text)));
        }
        let source: fn(String) -> SlotSource = if self.eat(".agent.attributes") {
            SlotSource::AgentAttribute
        } else if self.eat(".agent.labels") {
            SlotSource::AgentLabel
        } else if self.eat(".") {
            return Ok(self.name().map(|name| Inside::Source(SlotSource::Variable(name))));
        } else {
            return Ok(None);
        };
        self.spaces();
        if !self.eat("[") {
            return Ok(None);
        }
        self.spaces();
        let Some(key) = self.quoted() else { return Ok(None) };
        self.spaces();
        if !self.eat("]") {
            return Ok(None);
        }
        if key.is_empty() || key.len() > MAX_KEY || key.contains(char::is_control) {
            return Err(format!(
                "{} is not a key of attributes or labels: it has 1 to {MAX_KEY} bytes and no control characters",
                brief(&key)
            ));
        }
        Ok(Some(Inside::Source(source(key))))
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn name(&mut self) -> Option<String> {
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        is_variable_name(name).then(|| name.to_owned())
    }

    /// A text in `"` or `'`, in which a backslash precedes that quote and a backslash.
    fn quoted(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => text.push(chars.next().map(|(_, c)| c).filter(|c| *c == quote || *c == '\\')?),
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Some(text);
                }
                c => text.push(c),
            }
        }
        None
    }
}

/// Longest key of an attribute or label, in bytes.
const MAX_KEY: usize = 253;

/// Longest name of a variable, in bytes.
pub(super) const MAX_VARIABLE_NAME: usize = 63;

/// Whether this can name a variable. `agent` cannot: it begins the other placeholders.
pub(super) fn is_variable_name(name: &str) -> bool {
    name.len() <= MAX_VARIABLE_NAME
        && name != "agent"
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variable(name: &str, offset: usize) -> Part {
        Part::Source(SlotSource::Variable(name.to_owned()), offset)
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn message(text: &str) -> String {
        let errors = split(text).unwrap_err();
        assert_eq!(errors.len(), 1);
        errors[0].message.clone()
    }

    #[test]
    fn placeholders_are_found() {
        assert_eq!(split("{{.a}}"), Ok(vec![variable("a", 0)]));
        assert_eq!(split("é{{ .a_1\t}}b"), Ok(vec![text("é"), variable("a_1", 2), text("b")]));
        let attribute = Part::Source(SlotSource::AgentAttribute("host.name".to_owned()), 0);
        assert_eq!(split("{{.agent.attributes[\"host.name\"]}}"), Ok(vec![attribute]));
        let label = Part::Source(SlotSource::AgentLabel("a\"}}'".to_owned()), 1);
        assert_eq!(split("-{{ .agent.labels [ 'a\"}}\\'' ] }}"), Ok(vec![text("-"), label]));
        assert_eq!(split("{{\"{{\"}} .Values }}"), Ok(vec![text("{{ .Values }}")]));
        assert_eq!(split("{{'{{ .a }}'}}"), Ok(vec![text("{{ .a }}")]));
        assert_eq!(split("{\"a\":{{{.a}}}}"), Ok(vec![text("{\"a\":{"), variable("a", 6), text("}}")]));
        assert_eq!(split("}} {"), Ok(vec![text("}} {")]));
        assert_eq!(split("{{\"\"}}"), Ok(vec![]));
        assert_eq!(split(""), Ok(vec![]));
    }

    #[test]
    fn anything_else_is_refused() {
        for other in [
            "{{ if .a }}",
            "{{.a | upper}}",
            "{{-.a}}",
            "{{a}}",
            "{{}}",
            "{{.}}",
            "{{.1a}}",
            "{{.a.b}}",
            "{{.agent}}",
            "{{.agent.name}}",
            "{{.agent.labels.team}}",
            "{{.agent.labels[team]}}",
            "{{.agent.labels[\"a]}}",
            "{{\"a\\n\"}}",
            "{{/* x */}}",
            "{{.é}}",
        ] {
            let message = message(other);
            assert!(
                message.contains("is not a placeholder: there are only {{.name}}, "),
                "{other}: {message}"
            );
            assert!(message.ends_with("no conditions, loops or functions"));
        }
        assert!(message("a {{.b").starts_with("`{{` is not closed"));
        assert!(message("{{.agent.labels[\"\"]}}").starts_with("\"\" is not a key"));
        let errors = split("{{range}} {{.ok}} {{end}} {{").unwrap_err();
        assert_eq!(errors.iter().map(|error| error.offset).collect::<Vec<_>>(), [0, 18, 26]);
    }

    proptest! {
        #[test]
        fn any_text_is_split_or_refused(text in "(\\{\\{|\\}\\}|\"|'|\\.|a|agent|labels|\\[|\\]|\\\\| |é|\\PC){0,30}") {
            let _ = split(&text);
        }

        #[test]
        fn text_without_braces_stays(text in "[^{]{1,40}") {
            prop_assert_eq!(split(&text), Ok(vec![Part::Text(text)]));
        }

        #[test]
        fn any_text_can_be_escaped(inside in any::<String>()) {
            let escaped = inside.replace('\\', "\\\\").replace('"', "\\\"");
            let parts = split(&format!("{{{{\"{escaped}\"}}}}"));
            let expected = if inside.is_empty() { vec![] } else { vec![Part::Text(inside)] };
            prop_assert_eq!(parts, Ok(expected));
        }
    }
}
