//! Histories, differences, previews and deletions of what was applied.

use std::path::PathBuf;

use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use time::OffsetDateTime;

use super::agents::check_uid;
use super::client::{Body, CliError, Client};
use super::output::{Page, Printer, age, clean, clean_lines, or_dash, table};
use super::sources::Sources;

/// What `muster configs preview` shows.
#[derive(Debug, Clone, Args)]
pub struct PreviewArgs {
    /// The agent's instance_uid.
    #[arg(long, value_name = "UID")]
    agent: String,
    /// Manifests to be previewed as if they were applied: a file, a directory, or `-`. May be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What is deleted, and how.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// Its name.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Why, for the history.
    #[arg(short, long, value_name = "TEXT")]
    pub(super) message: Option<String>,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Version {
    version: String,
    digest: String,
    created_at: Option<String>,
    author: String,
    message: String,
    assignments: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Change {
    revision: u64,
    at: Option<String>,
    author: String,
    message: String,
    objects: Vec<Object>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Object {
    kind: String,
    name: String,
    version: Option<String>,
    action: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Difference {
    diff: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Preview {
    held: Option<String>,
    desired_hash: Option<String>,
    files: Vec<File>,
    diff: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    name: String,
    body: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Removed {
    kind: String,
    name: String,
    action: String,
}

/// The first line of a message.
fn first_line(message: &str) -> String {
    or_dash(message.lines().next().unwrap_or_default())
}

/// Prints the versions of a template.
pub(super) async fn versions(name: &str, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let now = OffsetDateTime::now_utc();
    let answer = client.get(&["configs", name, "history"], &[]).await?;
    printer.print(answer, |answer| {
        let list: List<Version> = client.read(answer)?;
        let row = |found: Version| {
            let digest = found.digest.get(..12).unwrap_or(&found.digest).to_owned();
            let age = age(found.created_at.as_deref(), now);
            let assignments = or_dash(&found.assignments.join(", "));
            vec![found.version, digest, or_dash(&found.author), age, assignments, first_line(&found.message)]
        };
        let heads = ["VERSION", "DIGEST", "AUTHOR", "AGE", "ASSIGNMENTS", "MESSAGE"];
        Ok(table(&heads, list.items.into_iter().map(row)))
    })
}

/// Prints changes of the configuration, of all of it or of one object.
pub(super) async fn changes(
    object: Option<(&str, &str)>,
    client: &Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let now = OffsetDateTime::now_utc();
    let query: Vec<_> =
        object.map(|(kind, name)| [("kind", kind), ("name", name)]).into_iter().flatten().collect();
    let answer = client.get(&["changes"], &query).await?;
    printer.print(answer, |answer| {
        let list: List<Change> = client.read(answer)?;
        let shown = |object: &Object| {
            let version = object.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
            format!("{}/{}{version} {}", object.kind.to_lowercase(), object.name, object.action)
        };
        let row = |found: Change| {
            let objects: Vec<_> = found.objects.iter().map(shown).collect();
            let age = age(found.at.as_deref(), now);
            vec![
                found.revision.to_string(),
                or_dash(&found.author),
                age,
                objects.join(", "),
                first_line(&found.message),
            ]
        };
        let heads = ["REVISION", "AUTHOR", "AGE", "CHANGED", "MESSAGE"];
        Ok(table(&heads, list.items.into_iter().map(row)))
    })
}

/// Prints what differs between two versions of a template.
pub(super) async fn diff(
    name: &str,
    from: Option<&str>,
    to: Option<&str>,
    client: &Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let query: Vec<_> =
        [("from", from), ("to", to)].into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let answer = client.get(&["configs", name, "diff"], &query).await?;
    printer.print(answer, |answer| {
        let Difference { diff } = client.read(answer)?;
        Ok(if diff.is_empty() { "they are the same\n".to_owned() } else { clean_lines(&diff) })
    })
}

impl PreviewArgs {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let mut sources = Sources::read(&self.files)?;
        let uid = check_uid(&self.agent)?;
        let body = Body::Manifests(std::mem::take(&mut sources.stream));
        let answer = client.call(Method::POST, &["agents", &uid, "preview"], &[], body).await;
        let answer = answer.map_err(|error| sources.placed(error))?;
        let with_files = !self.files.is_empty();
        printer.print(answer, |answer| {
            let preview: Preview = client.read(answer)?;
            if let Some(reason) = preview.held {
                return Ok(format!("held back: {}\n", clean(&reason)));
            }
            if preview.desired_hash.is_none() {
                return Ok("no assignment is for the agent: it keeps what it runs\n".to_owned());
            }
            let mut page = Page::default();
            for File { name, body } in &preview.files {
                page = page.part(name, body);
            }
            if with_files {
                let same = "nothing changes for this agent\n";
                page = page.part("Difference", if preview.diff.is_empty() { same } else { &preview.diff });
            }
            Ok(page.finish())
        })
    }
}

impl DeleteArgs {
    /// Deletes something at this path of the API.
    pub(super) async fn run(
        self,
        path: &str,
        then: Option<&str>,
        client: &Client,
        printer: &mut Printer<'_>,
    ) -> Result<(), CliError> {
        let query: Vec<_> = [("then", then), ("message", self.message.as_deref())]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect();
        let answer = client.call(Method::DELETE, &[path, &self.name], &query, Body::Nothing).await?;
        printer.print(answer, |answer| {
            let removed: Removed = client.read(answer)?;
            let more = if removed.action == "retired" { ": its agents keep what it gave" } else { "" };
            Ok(clean(&format!("{}/{} {}{more}", removed.kind.to_lowercase(), removed.name, removed.action))
                + "\n")
        })
    }
}
