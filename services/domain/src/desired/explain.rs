//! Why an agent should run what it should: assignments, revisions, values and where each came from.

use std::collections::BTreeMap;

use super::{Decided, Desired, Labels, PlannedAssignment, PlannedFile, PlannedSlot, Planner};
use crate::agent::Agent;
use crate::ids::Digest;
use crate::preflight::RenderedFile;
use crate::template::{SlotSource, TypedValue, render};

/// Where the value of a placeholder comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The assignment gives this variable.
    Assignment(String),
    /// The template gives this variable's default.
    Default(String),
    /// The agent reports this attribute.
    Attribute(String),
    /// Operators gave the agent this label.
    Label(String),
}

impl Origin {
    pub(super) fn of(source: &SlotSource, values: &BTreeMap<String, TypedValue>) -> Self {
        match source {
            SlotSource::Variable(name) if values.contains_key(name) => Self::Assignment(name.clone()),
            SlotSource::Variable(name) => Self::Default(name.clone()),
            SlotSource::AgentAttribute(key) => Self::Attribute(key.clone()),
            SlotSource::AgentLabel(key) => Self::Label(key.clone()),
        }
    }

    /// As the API names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Assignment(_) => "assignment",
            Self::Default(_) => "default",
            Self::Attribute(_) => "attribute",
            Self::Label(_) => "label",
        }
    }

    /// Name of the variable, key of the attribute or label.
    pub fn name(&self) -> &str {
        match self {
            Self::Assignment(name) | Self::Default(name) | Self::Attribute(name) | Self::Label(name) => name,
        }
    }
}

/// Why an agent should run what it should.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The assignments that are for the agent, the highest priority first.
    pub assignments: Vec<ExplainedAssignment>,
    /// The files of its config, by name.
    pub files: Vec<ExplainedFile>,
    /// What it should run.
    pub desired: Desired,
}

/// An assignment that is for an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedAssignment {
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: i32,
    /// Name of its template.
    pub template: String,
    /// The version that it gives.
    pub version: String,
    /// Whether that is the latest because it follows it.
    pub follows: bool,
    /// Whether it is deleted, and its agents keep what it gave.
    pub retired: bool,
}

/// A file of an agent's config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedFile {
    /// Its name.
    pub name: String,
    /// MIME type.
    pub content_type: String,
    /// The assignment that gives it.
    pub assignment: String,
    /// Other assignments that would give it, in the order of their turn.
    pub hidden: Vec<String>,
    /// Those of them that have the same priority: only their names decide.
    pub clashes: Vec<String>,
    /// Values of its placeholders, each once.
    pub values: Vec<ExplainedValue>,
    /// The rendered text, unless a value is missing.
    pub text: Option<String>,
    /// Names the compiled body.
    pub digest: Digest,
}

/// A value of a placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedValue {
    /// Where it comes from.
    pub origin: Origin,
    /// The text as it is written, or why there is none.
    pub value: Result<String, String>,
}

impl Planner {
    /// Why this agent should run what [`Planner::desired`] says.
    pub fn explain(&self, agent: &Agent, labels: &Labels) -> Explanation {
        let (Decided { desired, .. }, thaw) = self.decide_thawed(agent, labels);
        let matching = self.assignments.iter().filter(|assignment| assignment.is_for(agent, labels));
        let matching: Vec<_> =
            matching.filter_map(|of| Some((of, of.layer(agent, labels, thaw, &mut false)?))).collect();
        let mut files: BTreeMap<&str, Vec<(&PlannedFile, &PlannedAssignment)>> = BTreeMap::new();
        for (assignment, layer) in &matching {
            for file in &layer.files {
                files.entry(&file.name).or_default().push((file, *assignment));
            }
        }
        let assignments = matching.iter().map(|(assignment, layer)| ExplainedAssignment {
            name: assignment.name.clone(),
            priority: assignment.priority,
            template: layer.template.clone(),
            version: layer.version.clone(),
            follows: assignment.follows,
            retired: assignment.retired_at.is_some(),
        });
        Explanation {
            assignments: assignments.collect(),
            files: files.values().filter_map(|givers| self.file(givers, agent, labels)).collect(),
            desired,
        }
    }

    fn file(
        &self,
        givers: &[(&PlannedFile, &PlannedAssignment)],
        agent: &Agent,
        labels: &Labels,
    ) -> Option<ExplainedFile> {
        let ((file, giver), others) = givers.split_first()?;
        let values = file.slots.iter().zip(&file.origins).map(|(slot, origin)| ExplainedValue {
            origin: origin.clone(),
            value: slot.value(agent, labels).map(|(_, text)| text),
        });
        let values: Vec<_> = values.collect();
        let texts: Result<Vec<_>, _> = values.iter().map(|value| value.value.clone()).collect();
        let name = |(_, assignment): &(&PlannedFile, &PlannedAssignment)| assignment.name.clone();
        let same = others.iter().filter(|(_, other)| other.priority == giver.priority);
        Some(ExplainedFile {
            name: file.name.clone(),
            content_type: file.content_type.clone(),
            assignment: giver.name.clone(),
            hidden: others.iter().map(name).collect(),
            clashes: same.map(name).collect(),
            values,
            text: texts.ok().and_then(|texts| Some(render(self.body(&file.digest)?, &texts))),
            digest: file.digest,
        })
    }

    /// The rendered files of an assignment, those that are the same for all agents.
    pub fn files_without_agent(&self, assignment: &str) -> Option<Vec<RenderedFile>> {
        let assignment = self.assignments.iter().find(|found| found.name == assignment)?;
        let file = |file: &PlannedFile| {
            let texts = file.slots.iter().map(|slot| match slot {
                PlannedSlot::Fixed { text, .. } => Some(text.clone()),
                PlannedSlot::OfAgent(_) | PlannedSlot::Missing(_) => None,
            });
            let text = render(self.body(&file.digest)?, &texts.collect::<Option<Vec<_>>>()?);
            Some(RenderedFile { name: file.name.clone(), content_type: file.content_type.clone(), text })
        };
        // The latest that it gives, whoever gets it by now.
        Some(assignment.layers.first()?.files.iter().filter_map(file).collect())
    }

    /// The rendered files of an agent's config, by name: file name, content type and text.
    pub fn rendered(&self, config: &super::DesiredConfig) -> Vec<(String, String, String)> {
        let text = |file: &super::DesiredFile| {
            self.body(&file.digest).map(|body| render(body, &file.slots)).unwrap_or_default()
        };
        config.files.iter().map(|file| (file.name.clone(), file.content_type.clone(), text(file))).collect()
    }
}
