//! Selectors: which agents something is for. The syntax is that of Kubernetes label selectors, over
//! an agent's attributes and labels: `a=b`, `a==b`, `a!=b`, `a in (x, y)`, `a notin (x, y)`, `a`,
//! `!a`, joined by commas. Values may be in quotes.

mod known;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::yaml::brief;

pub use known::Known;

/// Most requirements of a selector.
pub const MAX_REQUIREMENTS: usize = 64;
/// Most values of a selector's requirements together.
pub const MAX_VALUES: usize = 1000;
/// Most agent ids of a selector.
pub const MAX_AGENT_IDS: usize = 10_000;
/// Longest key, in bytes.
pub const MAX_KEY: usize = 253;
/// Longest value and agent id, in bytes.
pub const MAX_VALUE: usize = 1024;

/// A selector, or a part of one, that is not well formed: what is wrong, and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSelector(String);

/// A text that is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("character {position}: {message}")]
pub struct SelectorError {
    /// Which character, from 1.
    pub position: usize,
    /// What is wrong, and the fix.
    pub message: String,
}

/// Requirements that must all hold; none at all holds for every agent. Stored as its text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    condition: Condition,
}

/// What a [`Requirement`] asks of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key is there, with one of these values.
    In(Vec<String>),
    /// The key is not there, or has none of these values.
    NotIn(Vec<String>),
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
}

impl Requirement {
    /// A requirement.
    ///
    /// # Errors
    /// A key that is empty, longer than [`MAX_KEY`] bytes or has a character of the syntax; no values,
    /// or one longer than [`MAX_VALUE`] bytes or with a control character.
    pub fn new(key: impl Into<String>, condition: Condition) -> Result<Self, InvalidSelector> {
        let key = key.into();
        if key.is_empty() || key.len() > MAX_KEY || !key.chars().all(is_bare) {
            return Err(InvalidSelector(format!(
                "{} is not a key: it has 1 to {MAX_KEY} bytes, without spaces and {SYNTAX}",
                brief(&key)
            )));
        }
        if let Condition::In(values) | Condition::NotIn(values) = &condition {
            if values.is_empty() {
                return Err(InvalidSelector(format!("{} has no values: give at least one", brief(&key))));
            }
            values.iter().try_for_each(|value| check_value("a value", value))?;
        }
        Ok(Self { key, condition })
    }

    /// Its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its condition.
    pub fn condition(&self) -> &Condition {
        &self.condition
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let is_in = |values: &[String]| value.is_some_and(|value| values.iter().any(|known| known == value));
        match &self.condition {
            Condition::In(values) => is_in(values),
            Condition::NotIn(values) => !is_in(values),
            Condition::Exists => value.is_some(),
            Condition::DoesNotExist => value.is_none(),
        }
    }
}

/// Checks a value or an agent id. The empty value is a value.
fn check_value(what: &str, value: &str) -> Result<(), InvalidSelector> {
    if value.len() > MAX_VALUE || value.contains(char::is_control) {
        return Err(InvalidSelector(format!(
            "{} is not {what}: it has at most {MAX_VALUE} bytes and no control characters",
            brief(value)
        )));
    }
    Ok(())
}

impl Selector {
    /// A selector of these requirements.
    ///
    /// # Errors
    /// More than [`MAX_REQUIREMENTS`] or [`MAX_VALUES`].
    pub fn new(requirements: Vec<Requirement>) -> Result<Self, InvalidSelector> {
        let values = requirements.iter().map(|requirement| match &requirement.condition {
            Condition::In(values) | Condition::NotIn(values) => values.len(),
            Condition::Exists | Condition::DoesNotExist => 0,
        });
        if requirements.len() > MAX_REQUIREMENTS {
            return Err(InvalidSelector(format!(
                "has more than {MAX_REQUIREMENTS} requirements: remove some"
            )));
        }
        if values.sum::<usize>() > MAX_VALUES {
            return Err(InvalidSelector(format!("has more than {MAX_VALUES} values: remove some")));
        }
        Ok(Self { requirements })
    }

    /// Its requirements.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it has no requirements, so that it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether all requirements hold for what this function knows of each key.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<Cow<'a, str>>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(lookup(&requirement.key).as_deref()))
    }
}

/// Which agents an assignment is for: those that its requirements match, if it has any, and those it
/// lists by id. With neither it is for every agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AgentSelector {
    /// Requirements on attributes and labels.
    #[serde(default, skip_serializing_if = "Selector::is_empty")]
    pub requirements: Selector,
    /// Agents by instance_uid (lower case, with hyphens) or operator-set name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub agent_ids: BTreeSet<String>,
}

impl AgentSelector {
    /// A selector of these requirements and ids. An id that is a UUID with hyphens is put in lower case.
    ///
    /// # Errors
    /// More than [`MAX_AGENT_IDS`], or an id that is empty, longer than [`MAX_VALUE`] bytes or has a
    /// control character.
    pub fn new(
        requirements: Selector,
        agent_ids: impl IntoIterator<Item = String>,
    ) -> Result<Self, InvalidSelector> {
        let agent_ids = agent_ids.into_iter().map(agent_id).collect::<Result<BTreeSet<_>, _>>()?;
        if agent_ids.len() > MAX_AGENT_IDS {
            return Err(InvalidSelector(format!(
                "has more than {MAX_AGENT_IDS} agent ids: select by a label"
            )));
        }
        Ok(Self { requirements, agent_ids })
    }

    /// Whether it is for an agent with this instance_uid (lower case, with hyphens), operator-set name,
    /// and attributes and labels.
    pub fn matches<'a>(
        &self,
        uid: &str,
        name: Option<&str>,
        lookup: impl Fn(&str) -> Option<Cow<'a, str>>,
    ) -> bool {
        if self.requirements.is_empty() && self.agent_ids.is_empty() {
            return true;
        }
        self.agent_ids.contains(uid)
            || name.is_some_and(|name| self.agent_ids.contains(name))
            || !self.requirements.is_empty() && self.requirements.matches(lookup)
    }
}

/// An agent id as it is compared.
pub(crate) fn agent_id(id: String) -> Result<String, InvalidSelector> {
    if id.is_empty() {
        return Err(InvalidSelector("\"\" is not an agent id: write an instance_uid or a name".to_owned()));
    }
    check_value("an agent id", &id)?;
    let is_uid = id.len() == 36 && Uuid::try_parse(&id).is_ok();
    Ok(if is_uid { id.to_ascii_lowercase() } else { id })
}

const SYNTAX: &str = "any of , = ! < > ( ) \" ' \\";

/// Whether a character may stand in a key, or in a value without quotes.
fn is_bare(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !",=!<>()\"'\\".contains(c)
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, requirement) in self.requirements.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &[String]| values.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(",");
        match &self.condition {
            Condition::Exists => f.write_str(&self.key),
            Condition::DoesNotExist => write!(f, "!{}", self.key),
            Condition::In(values) if values.len() == 1 => write!(f, "{}={}", self.key, list(values)),
            Condition::NotIn(values) if values.len() == 1 => write!(f, "{}!={}", self.key, list(values)),
            Condition::In(values) => write!(f, "{} in ({})", self.key, list(values)),
            Condition::NotIn(values) => write!(f, "{} notin ({})", self.key, list(values)),
        }
    }
}

fn quoted(value: &str) -> Cow<'_, str> {
    if !value.is_empty() && value.chars().all(is_bare) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")))
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    /// Reads a selector; the empty text is the one without requirements.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, rest: text };
        let mut requirements = Vec::new();
        parser.spaces();
        while !parser.rest.is_empty() {
            if requirements.len() == MAX_REQUIREMENTS {
                return Err(
                    parser.error(format!("has more than {MAX_REQUIREMENTS} requirements: remove some"))
                );
            }
            requirements.push(parser.requirement()?);
            if !parser.eat(",") {
                break;
            }
            if parser.rest.is_empty() {
                return Err(parser.error("a requirement is missing after the comma"));
            }
        }
        if !parser.rest.is_empty() {
            return Err(parser
                .error("a comma must stand between requirements; a value with spaces must be in quotes"));
        }
        Self::new(requirements).map_err(|InvalidSelector(message)| SelectorError { position: 1, message })
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    /// An error here.
    fn error(&self, message: impl Into<String>) -> SelectorError {
        self.error_at(self.rest, message)
    }

    /// An error where `rest` began.
    fn error_at(&self, rest: &str, message: impl Into<String>) -> SelectorError {
        let before = &self.text[..self.text.len() - rest.len()];
        SelectorError { position: before.chars().count() + 1, message: message.into() }
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes a token, and the spaces after it.
    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest.strip_prefix(token);
        self.rest = found.map_or(self.rest, str::trim_start);
        found.is_some()
    }

    /// Takes a word without quotes, perhaps empty, and the spaces after it.
    fn word(&mut self) -> &'a str {
        let end = self.rest.find(|c| !is_bare(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        word
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let start = self.rest;
        let not = self.eat("!");
        let key = self.word();
        if key.is_empty() {
            return Err(self.error("a key is missing: write a requirement such as service.name=otelcol"));
        }
        let condition = if not { Condition::DoesNotExist } else { self.condition()? };
        Requirement::new(key, condition).map_err(|InvalidSelector(message)| self.error_at(start, message))
    }

    /// What follows a key.
    fn condition(&mut self) -> Result<Condition, SelectorError> {
        if self.eat("==") || self.eat("=") {
            return Ok(Condition::In(vec![self.value()?]));
        }
        if self.eat("!=") {
            return Ok(Condition::NotIn(vec![self.value()?]));
        }
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Condition::Exists);
        }
        let start = self.rest;
        match self.word() {
            "in" => Ok(Condition::In(self.values()?)),
            "notin" => Ok(Condition::NotIn(self.values()?)),
            _ => Err(self.error_at(
                start,
                "an operator must follow the key: =, ==, !=, in (x, y), notin (x, y), or nothing",
            )),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        if !self.eat("(") {
            return Err(self.error("values in parentheses must follow: (x, y)"));
        }
        let mut values = Vec::new();
        loop {
            if self.rest.starts_with([',', ')']) {
                return Err(self.error("a value is missing; write \"\" for the empty one"));
            }
            if values.len() == MAX_VALUES {
                return Err(self.error(format!("has more than {MAX_VALUES} values: remove some")));
            }
            values.push(self.value()?);
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(
                    self.error("`,` or `)` must follow a value; a value with spaces must be in quotes")
                );
            }
        }
    }

    /// A value; without quotes it may be empty.
    fn value(&mut self) -> Result<String, SelectorError> {
        let start = self.rest;
        let Some(quote) = start.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            return Ok(self.word().to_owned());
        };
        let mut value = String::new();
        let mut chars = start.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, escaped)) if escaped == quote || escaped == '\\' => value.push(escaped),
                    _ => return Err(self.error_at(&start[at..], "write a backslash in quotes as \\\\")),
                },
                c if c == quote => {
                    self.rest = start[at + 1..].trim_start();
                    return Ok(value);
                }
                c => value.push(c),
            }
        }
        Err(self.error(format!("the quotes are not closed: add {quote}")))
    }
}
