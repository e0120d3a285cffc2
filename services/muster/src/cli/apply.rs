//! `muster apply`: manifests, all of them or none.

use std::path::PathBuf;

use clap::Args;
use reqwest::Method;
use serde::Deserialize;

use super::client::{Body, CliError, Client};
use super::output::{Printer, clean, clean_lines};
use super::sources::Sources;

/// Arguments of `muster apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyArgs {
    /// Manifest file of one or more documents; a directory stands for the .yaml, .yml and .json files in it
    /// and below; `-` is standard input. May be repeated: all files are applied together.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Why, for the history.
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// The revision that you looked at: refused if one of the objects was changed after it.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    /// The source that owns what is applied from now on, such as a repository.
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Delete what the owner owns and the files do not declare.
    #[arg(long, requires = "owner")]
    prune: bool,
    /// Only say what would happen, to how many agents.
    #[arg(long)]
    dry_run: bool,
    /// Apply also what is proven wrong for agents. The history says so.
    #[arg(long, conflicts_with = "dry_run")]
    force: bool,
}

/// Arguments of `muster diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// Manifest file of one or more documents, directory, or `-` for standard input. May be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The source that owns what is declared.
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Also say what the owner owns and the files do not declare.
    #[arg(long, requires = "owner")]
    prune: bool,
}

#[derive(Deserialize)]
struct Applied {
    results: Vec<Outcome>,
    #[serde(default)]
    rollouts: Vec<String>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    impact: Impact,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Impact {
    changed: u64,
    held: u64,
    not_accepting: u64,
    first: Vec<String>,
    sample: Option<Sample>,
    errors: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Sample {
    instance_uid: String,
    diff: String,
}

#[derive(Deserialize)]
struct Outcome {
    kind: String,
    name: String,
    version: Option<String>,
    action: String,
    #[serde(default)]
    diff: Option<String>,
}

impl ApplyArgs {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let revision = self.if_revision.map(|revision| revision.to_string());
        let query = [
            ("message", self.message.as_deref()),
            ("if_revision", revision.as_deref()),
            ("owner", self.owner.as_deref()),
            ("prune", self.prune.then_some("true")),
            ("dry_run", self.dry_run.then_some("true")),
            ("force", self.force.then_some("true")),
        ];
        let answer = post("apply", &self.files, &query, client).await?;
        printer.print(answer, |answer| Ok(lines(&client.read(answer)?)))
    }
}

impl DiffArgs {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let query = [("owner", self.owner.as_deref()), ("prune", self.prune.then_some("true"))];
        let answer = post("diff", &self.files, &query, client).await?;
        let applied: Applied = client.read(answer.clone())?;
        printer.print(answer, |_| Ok(lines(&applied)))?;
        if applied.results.iter().all(|outcome| outcome.action == "unchanged") {
            return Ok(());
        }
        Err(CliError::Differs)
    }
}

/// Sends manifests to be applied, with these options.
async fn post(
    path: &str,
    files: &[PathBuf],
    query: &[(&str, Option<&str>)],
    client: &Client,
) -> Result<serde_json::Value, CliError> {
    let mut sources = Sources::read(files)?;
    let stream = Body::Manifests(std::mem::take(&mut sources.stream));
    let query: Vec<_> = query.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect();
    client.call(Method::POST, &[path], &query, stream).await.map_err(|error| sources.placed(error))
}

fn lines(applied: &Applied) -> String {
    let line = |outcome: &Outcome| {
        let version = outcome.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        let object = format!("{}/{}{version}", outcome.kind.to_lowercase(), outcome.name);
        let diff = outcome.diff.as_deref().map(clean_lines).unwrap_or_default();
        clean(&format!("{object} {}", outcome.action)) + "\n" + &diff
    };
    let mut text: String = applied.results.iter().map(line).collect();
    for id in &applied.rollouts {
        let id = clean(id);
        text.push_str(&format!("rollout/{id} begins: see `muster rollouts watch {id}`\n"));
    }
    let impact = &applied.impact;
    for warning in &impact.warnings {
        text.push_str(&format!("warning: {}\n", clean(warning)));
    }
    for error in &impact.errors {
        text.push_str(&format!("error: {}\n", clean(error)));
    }
    if !applied.dry_run {
        return text;
    }
    let verb = if impact.changed == 1 { "agent changes" } else { "agents change" };
    text.push_str(&format!("{} {verb}", impact.changed));
    if impact.not_accepting > 0 {
        text.push_str(&format!(", {} of them accept no remote config", impact.not_accepting));
    }
    if impact.held > 0 {
        text.push_str(&format!(", {} would be held back", impact.held));
    }
    text.push('\n');
    for uid in &impact.first {
        text.push_str(&format!("  {}\n", clean(uid)));
    }
    if impact.changed > impact.first.len() as u64 {
        text.push_str("  ...\n");
    }
    if let Some(Sample { instance_uid, diff }) = &impact.sample {
        text.push_str(&format!("on agent {}:\n{}", clean(instance_uid), clean_lines(diff)));
    }
    text
}
