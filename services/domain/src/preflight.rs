//! What can be told of a config before any agent gets it: whether its files are well formed, and whether a
//! collector can run it.
//!
//! Only what is proven wrong is an error. What depends on an agent is told as what the config needs, to be
//! compared with what each agent reports that it has.

mod collector;
mod fluent_bit;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::report::Components;
use crate::yaml::{Node, Span, parse_documents};

/// A rendered file of a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedFile {
    /// Its name.
    pub name: String,
    /// MIME type.
    pub content_type: String,
    /// Its text.
    pub text: String,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It cannot work.
    Error,
    /// It may not be meant so.
    Warning,
}

/// Something that was found in a rendered file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Name of the file.
    pub file: String,
    /// Where in the rendered text, if that can be told.
    pub place: Option<Span>,
    /// What it is, and the fix.
    pub message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "file {:?}", self.file)?;
        if let Some(place) = self.place {
            write!(f, ", {place}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A kind of component that a config needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// The section that it stands in, as agents name it too: `receivers`, `exporters`, ...
    pub section: String,
    /// Its type, such as `otlp`.
    pub component: String,
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.component, self.section)
    }
}

/// What was found in a config.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// What was found, the errors first.
    pub findings: Vec<Finding>,
    /// What an agent must have to run it.
    pub needs: BTreeSet<Need>,
}

/// Most findings of one config.
pub const MAX_FINDINGS: usize = 50;

/// What a file is, by its content type or else by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Yaml,
    Json,
    FluentBit,
    Other,
}

/// Content types and ends of names of each format. The first that fits is taken.
const FORMATS: &[(Format, &[&str], &[&str])] = &[
    (
        Format::Yaml,
        &["text/yaml", "text/x-yaml", "application/yaml", "application/x-yaml"],
        &[".yaml", ".yml"],
    ),
    (Format::Json, &["application/json", "text/json"], &[".json"]),
    (
        Format::FluentBit,
        &["text/x-fluent-bit", "application/x-fluent-bit"],
        &["fluent-bit.conf", "fluentbit.conf"],
    ),
];

impl Format {
    fn of(file: &RenderedFile) -> Self {
        // Parameters, such as a charset, follow a semicolon.
        let kind = file.content_type.split(';').next().unwrap_or_default().trim();
        let by_type =
            FORMATS.iter().find(|(_, kinds, _)| kinds.iter().any(|known| kind.eq_ignore_ascii_case(known)));
        let by_name = FORMATS.iter().find(|(_, _, ends)| ends.iter().any(|end| file.name.ends_with(end)));
        by_type.or(by_name).map_or(Self::Other, |(format, _, _)| *format)
    }
}

/// Checks the files of one agent's config. Files of formats that are not known are passed over.
pub fn check(files: &[RenderedFile]) -> Checked {
    let mut checked = Checked::default();
    let mut trees: Vec<(&str, Node)> = Vec::new();
    for file in files {
        let error = |place, message: String| Finding {
            severity: Severity::Error,
            file: file.name.clone(),
            place,
            message,
        };
        match Format::of(file) {
            Format::Yaml => match parse_documents(&file.text) {
                Ok(documents) => {
                    trees.extend(documents.into_iter().map(|document| (file.name.as_str(), document.root)));
                }
                Err(failed) => {
                    let place = Span { line: failed.line, column: failed.column };
                    checked.findings.push(error(Some(place), format!("is not YAML: {}", failed.message)));
                }
            },
            Format::Json => {
                if let Err(failed) = serde_json::from_str::<serde::de::IgnoredAny>(&file.text) {
                    checked.findings.push(error(None, format!("is not JSON: {failed}")));
                }
            }
            Format::FluentBit => {
                let found = fluent_bit::check(&file.text).into_iter();
                checked.findings.extend(found.map(|(place, message)| error(Some(place), message)));
            }
            Format::Other => {}
        }
    }
    if trees.iter().any(|(_, tree)| collector::is_one(tree)) {
        collector::check(&trees, &mut checked);
    }
    checked.findings.sort();
    checked.findings.truncate(MAX_FINDINGS);
    checked
}

/// What of these needs an agent does not have that reports these components. A section that it does not
/// report is not known, and so is nothing missing in it.
pub fn missing<'a>(needs: &'a BTreeSet<Need>, components: &Components) -> Vec<&'a Need> {
    let is_missing = |need: &&Need| {
        let section = components.get(&need.section).filter(|section| !section.components.is_empty());
        section.is_some_and(|section| !section.components.contains_key(&need.component))
    };
    needs.iter().filter(is_missing).collect()
}
