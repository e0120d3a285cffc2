//! `muster configs` and `muster assignments`: what was applied.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::client::{CliError, Client};
use super::output::{Page, Printer, age, moment, or_dash, plain, table, yes_or_no};
use super::revisions::{self, DeleteArgs, PreviewArgs};

/// Commands on configuration templates.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigsCommand {
    /// List templates.
    List,
    /// Show a template: its variables and its manifest.
    #[command(visible_alias = "show")]
    Get {
        /// The template's name.
        #[arg(value_name = "NAME")]
        name: String,
        /// The version to show instead of the latest.
        #[arg(long, value_name = "VERSION")]
        version: Option<String>,
    },
    /// List the versions of a template: who applied them, when and why.
    History {
        /// The template's name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Show what differs between two versions of a template.
    Diff {
        /// The template's name.
        #[arg(value_name = "NAME")]
        name: String,
        /// The old version; by default the one before the new one.
        #[arg(long, value_name = "VERSION")]
        from: Option<String>,
        /// The new version; by default the latest.
        #[arg(long, value_name = "VERSION")]
        to: Option<String>,
    },
    /// Show the rendered config of one agent: the one that it should run, or would run with other manifests.
    Preview(PreviewArgs),
    /// Delete a template with all its versions, unless an assignment uses one.
    Delete(DeleteArgs),
}

/// Commands on assignments.
#[derive(Debug, Clone, Subcommand)]
pub enum AssignmentsCommand {
    /// List assignments.
    List,
    /// Show an assignment: its template, values and agents.
    #[command(visible_alias = "show")]
    Get {
        /// The assignment's name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List the changes of an assignment: who changed it, when and why.
    History {
        /// The assignment's name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Delete an assignment. No agent is sent an empty config.
    Delete {
        /// What is deleted.
        #[command(flatten)]
        delete: DeleteArgs,
        /// Its agents keep what it gave last.
        #[arg(long, conflicts_with = "fall_back")]
        keep: bool,
        /// Its agents get what the other assignments give.
        #[arg(long)]
        fall_back: bool,
    },
}

impl ConfigsCommand {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let now = OffsetDateTime::now_utc();
        match self {
            Self::List => {
                let answer = client.get(&["configs"], &[]).await?;
                printer.print(answer, |answer| Ok(templates(client.read(answer)?, now)))
            }
            Self::Get { name, version } => {
                let query: Vec<_> =
                    version.as_deref().map(|version| ("version", version)).into_iter().collect();
                let answer = client.get(&["configs", &name], &query).await?;
                printer.print(answer, |answer| Ok(template(client.read(answer)?, now)))
            }
            Self::History { name } => revisions::versions(&name, client, printer).await,
            Self::Diff { name, from, to } => {
                revisions::diff(&name, from.as_deref(), to.as_deref(), client, printer).await
            }
            Self::Preview(preview) => preview.run(client, printer).await,
            Self::Delete(delete) => delete.run("configs", None, client, printer).await,
        }
    }
}

impl AssignmentsCommand {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let now = OffsetDateTime::now_utc();
        match self {
            Self::List => {
                let answer = client.get(&["assignments"], &[]).await?;
                printer.print(answer, |answer| Ok(assignments(client.read(answer)?, now)))
            }
            Self::Get { name } => {
                let answer = client.get(&["assignments", &name], &[]).await?;
                printer.print(answer, |answer| Ok(assignment(client.read(answer)?, now)))
            }
            Self::History { name } => {
                revisions::changes(Some(("ConfigAssignment", &name)), client, printer).await
            }
            Self::Delete { delete, keep, fall_back } => {
                let then = keep.then_some("keep").or(fall_back.then_some("fall_back"));
                delete.run("assignments", then, client, printer).await
            }
        }
    }
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

/// A template of the API; in lists without version and source.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Template {
    name: String,
    version: String,
    versions: Vec<String>,
    latest: String,
    id: String,
    digest: String,
    created_at: Option<String>,
    author: String,
    message: String,
    source: String,
    variables: Vec<Variable>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Variable {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    required: bool,
    default: Option<Value>,
    #[serde(rename = "enum")]
    choices: Option<Vec<Value>>,
    min: Option<Value>,
    max: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Assignment {
    name: String,
    template: TemplateRef,
    values: BTreeMap<String, Value>,
    selector_text: String,
    priority: i64,
    file: Option<String>,
    on_removal: String,
    retired_at: Option<String>,
    owner: Option<String>,
    created_at: Option<String>,
    updated_at: Option<String>,
    matched_agents: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TemplateRef {
    name: String,
    version: Option<String>,
    resolved_version: Option<String>,
}

impl TemplateRef {
    /// The version in use, and whether it follows the latest.
    fn version(&self) -> String {
        match (&self.version, &self.resolved_version) {
            (Some(version), _) => version.clone(),
            (None, Some(resolved)) => format!("{resolved} (latest)"),
            (None, None) => "latest".to_owned(),
        }
    }
}

fn templates(templates: List<Template>, now: OffsetDateTime) -> String {
    let row = |template: Template| {
        let age = age(template.created_at.as_deref(), now);
        vec![template.name, or_dash(&template.latest), template.versions.len().to_string(), age]
    };
    table(&["NAME", "LATEST", "VERSIONS", "AGE"], templates.items.into_iter().map(row))
}

fn template(template: Template, now: OffsetDateTime) -> String {
    let row = |variable: &Variable| {
        let value = |value: &Option<Value>| or_dash(&value.as_ref().map(plain).unwrap_or_default());
        let choices: Vec<_> = variable.choices.iter().flatten().map(plain).collect();
        vec![
            variable.name.clone(),
            or_dash(&variable.kind),
            yes_or_no(Some(variable.required)),
            value(&variable.default),
            or_dash(&choices.join(", ")),
            value(&variable.min),
            value(&variable.max),
        ]
    };
    let variables = match template.variables.as_slice() {
        [] => String::new(),
        some => table(&["NAME", "TYPE", "REQUIRED", "DEFAULT", "ONE OF", "MIN", "MAX"], some.iter().map(row)),
    };
    Page::default()
        .pairs(
            "Template",
            [
                ("name", template.name),
                ("version", template.version),
                ("versions", template.versions.join(", ")),
                ("applied", moment(template.created_at.as_deref(), now)),
                ("author", template.author),
                ("message", template.message),
                ("id", template.id),
                ("digest", template.digest),
            ],
        )
        .part("Variables", &variables)
        .part("Manifest", &template.source)
        .finish()
}

fn assignments(assignments: List<Assignment>, now: OffsetDateTime) -> String {
    let row = |assignment: Assignment| {
        vec![
            assignment.template.name.clone(),
            assignment.template.version(),
            or_dash(&assignment.selector_text),
            assignment.priority.to_string(),
            age(assignment.created_at.as_deref(), now),
        ]
    };
    let rows = assignments.items.into_iter().map(|assignment| {
        let name = assignment.name.clone();
        [vec![name], row(assignment)].concat()
    });
    table(&["NAME", "TEMPLATE", "VERSION", "SELECTOR", "PRIORITY", "AGE"], rows)
}

fn assignment(assignment: Assignment, now: OffsetDateTime) -> String {
    let version = assignment.template.version();
    let values = assignment.values.iter().map(|(name, value)| (name.clone(), plain(value)));
    Page::default()
        .pairs(
            "Assignment",
            [
                ("name", assignment.name),
                ("template", assignment.template.name.clone()),
                ("version", version),
                ("selector", or_dash(&assignment.selector_text)),
                ("priority", assignment.priority.to_string()),
                ("file", assignment.file.unwrap_or(assignment.template.name)),
                ("when deleted", assignment.on_removal),
                ("deleted", moment(assignment.retired_at.as_deref(), now)),
                ("owner", assignment.owner.unwrap_or_default()),
                (
                    "matched agents",
                    assignment.matched_agents.map(|count| count.to_string()).unwrap_or_default(),
                ),
                ("applied", moment(assignment.created_at.as_deref(), now)),
                ("changed", moment(assignment.updated_at.as_deref(), now)),
            ],
        )
        .pairs("Values", values)
        .finish()
}
