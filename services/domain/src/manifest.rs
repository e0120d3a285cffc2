//! Manifests: what operators apply. YAML documents of `apiVersion: opamp.io/v1`, checked as far as
//! they can be alone; every error has its place and its fix.

mod assignment;
mod reader;
mod strategy;
mod template;
#[cfg(test)]
mod tests;
mod write;

use std::collections::HashMap;
use std::fmt;

use crate::ids;
use crate::intent::OnRemoval;
use crate::rollout;
use crate::selector::AgentSelector;
use crate::template::{CompiledTemplate, GivenValues, Problem, TemplateSpec, compile};
use crate::yaml::{Span, YamlDocument, brief, did_you_mean, parse_documents};
use reader::{Errors, Fields};

/// The version of manifests.
pub const API_VERSION: &str = "opamp.io/v1";

/// The kinds of manifests.
pub const KINDS: [&str; 3] = ["ConfigTemplate", "ConfigAssignment", "RolloutStrategy"];

/// Something wrong in a manifest. Shown as `line L, column C: FIELD: MESSAGE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Path of the field, such as `spec.variables[0].min`; empty for what concerns no field.
    pub field: String,
    /// What is wrong, and the fix.
    pub message: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ManifestError {}

impl Problem {
    /// The problem as an error of a manifest: at its own place, else at this one.
    pub fn at(self, otherwise: Span) -> ManifestError {
        let Span { line, column } = self.span.unwrap_or(otherwise);
        ManifestError { line, column, field: self.field, message: self.message }
    }
}

/// A document of a file of manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it declares.
    pub manifest: Manifest,
    /// Where it begins.
    pub span: Span,
}

/// What a document declares, by its `kind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// `kind: ConfigTemplate`.
    ConfigTemplate(TemplateManifest),
    /// `kind: ConfigAssignment`.
    ConfigAssignment(AssignmentManifest),
    /// `kind: RolloutStrategy`.
    RolloutStrategy(StrategyManifest),
}

impl Manifest {
    /// Its `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ConfigTemplate(_) => "ConfigTemplate",
            Self::ConfigAssignment(_) => "ConfigAssignment",
            Self::RolloutStrategy(_) => "RolloutStrategy",
        }
    }

    /// Its `metadata.name`.
    pub fn name(&self) -> &str {
        match self {
            Self::ConfigTemplate(manifest) => &manifest.name,
            Self::ConfigAssignment(manifest) => &manifest.name,
            Self::RolloutStrategy(manifest) => &manifest.name,
        }
    }

    /// Its `metadata.version`, which only templates have.
    pub fn version(&self) -> Option<&str> {
        match self {
            Self::ConfigTemplate(manifest) => manifest.version.as_deref(),
            Self::ConfigAssignment(_) | Self::RolloutStrategy(_) => None,
        }
    }
}

/// A config template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateManifest {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.version`.
    pub version: Option<String>,
    /// `spec`.
    pub spec: TemplateSpec,
    /// The document's own text.
    pub source: String,
}

impl TemplateManifest {
    /// Compiles the template.
    ///
    /// # Errors
    /// As [`compile`]. A manifest that [`parse`] gave has none.
    pub fn compile(&self) -> Result<CompiledTemplate, Vec<ManifestError>> {
        compile(&self.spec)
            .map_err(|problems| problems.into_iter().map(|problem| problem.at(self.spec.span)).collect())
    }
}

/// An assignment of a template's files to agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignmentManifest {
    /// `metadata.name`.
    pub name: String,
    /// `spec.template`.
    pub template: TemplateRef,
    /// `spec.values`, to be checked against the template's variables.
    pub values: GivenValues,
    /// `spec.selector`.
    pub selector: AgentSelector,
    /// `spec.priority`, 0 where absent. The higher one wins where two assignments give one file.
    pub priority: i32,
    /// `spec.file`: name for the file that the template's `config` gives.
    pub file: Option<String>,
    /// `spec.on_removal`: what its agents run once it is deleted.
    pub on_removal: OnRemoval,
    /// `spec.rollout.strategy`: name of the strategy by which changes reach agents.
    pub strategy: Option<String>,
}

/// How changes reach agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrategyManifest {
    /// `metadata.name`.
    pub name: String,
    /// `spec`.
    pub strategy: rollout::Strategy,
    /// The document's own text.
    pub source: String,
}

/// Names a version of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRef {
    /// The template's `metadata.name`.
    pub name: String,
    /// Its `metadata.version`; `None` follows the latest.
    pub version: Option<String>,
}

/// Reads a file of manifests.
///
/// # Errors
/// What is wrong, in the order of the text: the first error if the text is not YAML, else up to
/// [`crate::template::MAX_PROBLEMS`] errors of all documents.
pub fn parse(text: &str) -> Result<Vec<Document>, Vec<ManifestError>> {
    let mut errors = Errors::default();
    let yaml = match parse_documents(text) {
        Ok(yaml) => yaml,
        Err(error) => {
            errors.push(Span { line: error.line, column: error.column }, "", error.message);
            return Err(errors.sorted());
        }
    };
    if yaml.is_empty() {
        errors.push(Span::START, "", "there is no manifest: write at least one");
    }
    let mut documents: Vec<Document> = Vec::new();
    for document in &yaml {
        documents.extend(
            read(document, &mut errors).map(|manifest| Document { manifest, span: document.root.span }),
        );
    }
    check_distinct(&documents, &mut errors);
    if errors.is_empty() { Ok(documents) } else { Err(errors.sorted()) }
}

fn read(document: &YamlDocument<'_>, errors: &mut Errors) -> Option<Manifest> {
    let root = errors.fields(&document.root, "", &["apiVersion", "kind", "metadata", "spec"])?;
    if let Some(version) = root.string("apiVersion", errors)
        && version != API_VERSION
    {
        let found = brief(version);
        errors.push(
            root.place("apiVersion"),
            "apiVersion",
            format!("{found} is not known: write {API_VERSION}"),
        );
    }
    let kind = root.string("kind", errors)?;
    let known = if kind == "ConfigTemplate" {
        ["name", "version", "labels", "annotations"].as_slice()
    } else {
        ["name", "labels", "annotations"].as_slice()
    };
    if !KINDS.contains(&kind) {
        let hint = did_you_mean(kind, KINDS);
        let message = format!("{} is not known: write one of {}{hint}", brief(kind), KINDS.join(", "));
        errors.push(root.place("kind"), "kind", message);
        return None;
    }
    let metadata = root.required("metadata", errors).and_then(|node| errors.fields(node, "metadata", known));
    let name = metadata.as_ref().and_then(|metadata| name(metadata, "name", errors));
    let version = metadata.as_ref().and_then(|metadata| version(metadata, errors));
    for map in ["labels", "annotations"] {
        let node = metadata.as_ref().and_then(|metadata| metadata.get(map));
        node.map(|node| errors.strings(node, &format!("metadata.{map}")));
    }
    let spec = root.required("spec", errors)?;
    if kind == "RolloutStrategy" {
        let strategy = strategy::read(spec, errors)?;
        Some(Manifest::RolloutStrategy(StrategyManifest {
            name: name?,
            strategy,
            source: document.source.to_owned(),
        }))
    } else if kind == "ConfigTemplate" {
        let spec = template::read(spec, errors)?;
        Some(Manifest::ConfigTemplate(TemplateManifest {
            name: name?,
            version,
            spec,
            source: document.source.to_owned(),
        }))
    } else {
        assignment::read(spec, name, errors).map(Manifest::ConfigAssignment)
    }
}

/// A field that holds the name of an object.
fn name(fields: &Fields<'_>, field: &'static str, errors: &mut Errors) -> Option<String> {
    let name = fields.string(field, errors)?;
    match ids::check_name(field, name) {
        Ok(()) => Some(name.to_owned()),
        Err(error) => {
            errors.push(fields.place(field), &fields.path(field), error.to_string());
            None
        }
    }
}

/// The field `version`, if it is there.
fn version(fields: &Fields<'_>, errors: &mut Errors) -> Option<String> {
    const LONGEST: usize = 63;
    let version = errors.string(fields.get("version")?, &fields.path("version"))?;
    let is_printable = |c: char| !c.is_control() && !c.is_whitespace();
    if version.is_empty() || version.chars().count() > LONGEST || !version.chars().all(is_printable) {
        let message = format!(
            "{} is not a version: it has 1 to {LONGEST} printable characters, no spaces",
            brief(version)
        );
        errors.push(fields.place("version"), &fields.path("version"), message);
        return None;
    }
    Some(version.to_owned())
}

fn check_distinct(documents: &[Document], errors: &mut Errors) {
    let mut seen = HashMap::new();
    for Document { manifest, span } in documents {
        let key = (manifest.kind(), manifest.name(), manifest.version());
        if let Some(Span { line, .. }) = seen.insert(key, *span) {
            let version = key.2.map_or(String::new(), |version| format!(" version {version:?}"));
            let message =
                format!("{} {:?}{version} is declared on line {line} too: remove one", key.0, key.1);
            errors.push(*span, "metadata.name", message);
        }
    }
}
