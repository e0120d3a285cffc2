//! `muster agents explain`: why an agent has what it has.

use serde::Deserialize;

use super::agents::check_uid;
use super::client::{CliError, Client};
use super::output::{Page, Printer, or_dash, table};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Explanation {
    instance_uid: String,
    desired_hash: Option<String>,
    reported_hash: Option<String>,
    summary: String,
    assignments: Vec<Assignment>,
    files: Vec<File>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Assignment {
    name: String,
    priority: i64,
    template: String,
    version: String,
    follows_latest: bool,
    retired: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    name: String,
    assignment: String,
    hidden: Vec<String>,
    clashes: Vec<String>,
    values: Vec<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Value {
    name: String,
    origin: String,
    value: Option<String>,
    missing: Option<String>,
}

/// Prints why an agent has what it has.
pub(super) async fn explain(uid: &str, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let answer = client.get(&["agents", &check_uid(uid)?, "explain"], &[]).await?;
    printer.print(answer, |answer| Ok(page(client.read(answer)?)))
}

fn page(told: Explanation) -> String {
    let assignment = |found: Assignment| {
        let version = match (found.follows_latest, found.retired) {
            (_, true) => format!("{} (deleted, kept)", found.version),
            (true, false) => format!("{} (latest)", found.version),
            (false, false) => found.version,
        };
        vec![found.name, found.priority.to_string(), found.template, version]
    };
    let assignments = match told.assignments.is_empty() {
        true => String::new(),
        false => {
            table(&["NAME", "PRIORITY", "TEMPLATE", "VERSION"], told.assignments.into_iter().map(assignment))
        }
    };
    let mut page = Page::default()
        .pairs(
            "Agent",
            [
                ("uid", told.instance_uid),
                ("state", told.summary),
                ("desired", or_dash(&told.desired_hash.unwrap_or_default())),
                ("reported", or_dash(&told.reported_hash.unwrap_or_default())),
            ],
        )
        .part("Assignments", &assignments);
    for file in told.files {
        let row = |found: Value| {
            let value = found.value.or(found.missing.map(|missing| format!("missing: {missing}")));
            vec![found.name, value.unwrap_or_default(), found.origin]
        };
        page = page
            .pairs(
                &format!("File {:?}", file.name),
                [
                    ("given by", file.assignment),
                    ("would be given by", file.hidden.join(", ")),
                    ("clashes with", file.clashes.join(", ")),
                ],
            )
            .part(
                "Values",
                &match file.values.is_empty() {
                    true => String::new(),
                    false => table(&["NAME", "VALUE", "FROM"], file.values.into_iter().map(row)),
                },
            );
    }
    page.finish()
}
