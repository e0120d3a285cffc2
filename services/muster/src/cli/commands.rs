//! `muster agents restart` and the like: orders to one agent, or to all that a selector matches.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::agents::check_uid;
use super::client::{Body, CliError, Client};
use super::output::{Printer, age, clean, or_dash, table};
use crate::config::parse_duration;

/// Time between two looks at commands that are waited for.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Commands looked at in one request.
const LOOK: usize = 100;
/// How much longer than they may wait commands are looked at.
const GRACE: Duration = Duration::from_secs(15);

/// Which agents get a command, and how.
#[derive(Debug, Clone, Args)]
pub struct Order {
    /// The agent's instance_uid.
    #[arg(value_name = "UID", required_unless_present = "selector", conflicts_with = "selector")]
    uid: Option<String>,
    /// Every agent that this selects, by labels and attributes. They are counted, and confirmed, first.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// For how long the command may wait to be sent, 1s to 24h.
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = parse_ttl)]
    ttl: Duration,
    /// Do not ask before a selector's agents get the command.
    #[arg(short = 'y', long)]
    yes: bool,
    /// Wait until the command is sent, refused or has expired; fail unless it was sent.
    #[arg(long)]
    wait: bool,
}

/// What a custom message says.
#[derive(Debug, Clone, Args)]
pub struct MessageArgs {
    #[command(flatten)]
    order: Order,
    /// The custom capability, such as io.opentelemetry.pause.
    #[arg(long, value_name = "NAME")]
    capability: String,
    /// The type of the message within its capability.
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    /// What it says.
    #[arg(long, value_name = "TEXT", conflicts_with = "data_file")]
    data: Option<String>,
    /// A file with what it says, any bytes.
    #[arg(long, value_name = "FILE")]
    data_file: Option<PathBuf>,
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let fits = |ttl: &Duration| (1..=86_400).contains(&ttl.as_secs()) && ttl.subsec_nanos() == 0;
    parse_duration(text)
        .filter(fits)
        .ok_or_else(|| "must be a duration of whole seconds, 1s to 24h".to_owned())
}

/// A command of the API.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Given {
    id: String,
    instance_uid: String,
    action: String,
    status: String,
    reason: String,
    created_at: Option<String>,
}

#[derive(Deserialize)]
struct GivenList {
    items: Vec<Given>,
}

/// What a selector matches.
#[derive(Deserialize)]
struct Selected {
    count: usize,
    connected: usize,
    agents: Vec<SelectedAgent>,
    commands: Vec<Given>,
}

#[derive(Deserialize)]
struct SelectedAgent {
    instance_uid: String,
    name: String,
}

impl MessageArgs {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let data = match (self.data, self.data_file) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(file)) => std::fs::read(&file)
                .map_err(|error| CliError::Usage(format!("cannot read {}: {error}", file.display())))?,
            (None, None) => Vec::new(),
        };
        let more = json!({
            "capability": self.capability,
            "type": self.kind,
            "data_base64": STANDARD.encode(data),
        });
        self.order.run("message", more, client, printer).await
    }
}

impl Order {
    /// Gives the command; `more` is added to it.
    pub(super) async fn run(
        self,
        action: &str,
        more: Value,
        client: &Client,
        printer: &mut Printer<'_>,
    ) -> Result<(), CliError> {
        let mut command = json!({"action": action, "ttl_seconds": self.ttl.as_secs()});
        if let (Some(command), Value::Object(more)) = (command.as_object_mut(), more) {
            command.extend(more);
        }
        let (answer, ids) = match &self.uid {
            Some(uid) => {
                let path = ["agents", &check_uid(uid)?, "commands"];
                let answer = client.call(Method::POST, &path, &[], Body::Json(command)).await?;
                let given: Given = client.read(answer.clone())?;
                (answer, vec![given.id])
            }
            None => {
                let answer = self.give_many(action, command, client).await?;
                let selected: Selected = client.read(answer.clone())?;
                (answer, selected.commands.into_iter().map(|given| given.id).collect())
            }
        };
        if self.wait {
            return wait(&ids, self.ttl + GRACE, client, printer).await;
        }
        printer.print(answer, |answer| {
            if self.uid.is_some() {
                return Ok(list(vec![client.read(answer)?]));
            }
            let selected: Selected = client.read(answer)?;
            let row = |given: Given| vec![given.instance_uid, given.id];
            Ok(table(&["INSTANCE_UID", "COMMAND"], selected.commands.into_iter().map(row)))
        })
    }

    /// Counts the agents, asks, and gives the command to exactly so many.
    async fn give_many(&self, action: &str, command: Value, client: &Client) -> Result<Value, CliError> {
        let selector = self.selector.clone().unwrap_or_default();
        let dry = json!({"selector": selector, "dry_run": true, "command": command});
        let answer = client.call(Method::POST, &["commands"], &[], Body::Json(dry)).await?;
        let selected: Selected = client.read(answer)?;
        if selected.count == 0 {
            return Err(CliError::Usage("the selector matches no agent".to_owned()));
        }
        if !self.yes {
            confirm(action, &selected)?;
        }
        let real = json!({"selector": selector, "expect": selected.count, "command": command});
        client.call(Method::POST, &["commands"], &[], Body::Json(real)).await
    }
}

/// Asks whether to go on; without a terminal nobody can answer.
fn confirm(action: &str, selected: &Selected) -> Result<(), CliError> {
    let count = selected.count;
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Usage(format!(
            "the selector matches {count} agents: nothing was sent, as nobody can confirm that without a terminal; --yes confirms it"
        )));
    }
    let mut question = String::new();
    for agent in &selected.agents {
        question += &format!("  {} {}\n", agent.instance_uid, clean(&agent.name));
    }
    if count > selected.agents.len() {
        question += &format!("  and {} more\n", count - selected.agents.len());
    }
    let connected = selected.connected;
    question += &format!("{action}: {count} agents, {connected} of them connected. Go on? [y/N] ");
    let mut terminal = std::io::stderr();
    terminal.write_all(question.as_bytes()).and_then(|()| terminal.flush()).map_err(CliError::Output)?;
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| CliError::Usage(format!("cannot read the answer: {error}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::Usage("nothing was sent".to_owned())),
    }
}

/// Waits until no command is queued, and prints what became of them.
async fn wait(
    ids: &[String],
    at_most: Duration,
    client: &Client,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let end = Instant::now() + at_most;
    let mut items: Vec<Value> = Vec::new();
    for ids in ids.chunks(LOOK) {
        let all = ids.join(",");
        items.extend(loop {
            let answer = client.get(&["commands"], &[("ids", &all)]).await?;
            let is_queued = |item: &Value| item["status"] == "queued";
            let found = answer["items"].as_array().cloned().unwrap_or_default();
            if !found.iter().any(is_queued) || Instant::now() >= end {
                break found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        });
    }
    let sent = items.iter().filter(|item| item["status"] == "sent").count();
    printer.print(json!({"items": items}), |answer| {
        let GivenList { items } = client.read(answer)?;
        Ok(list(items))
    })?;
    match ids.len() - sent {
        0 => Ok(()),
        missing => Err(CliError::NotSent { missing, of: ids.len() }),
    }
}

/// Lists an agent's latest commands.
pub(super) async fn latest(uid: &str, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let answer = client.get(&["agents", &check_uid(uid)?, "commands"], &[]).await?;
    printer.print(answer, |answer| {
        let GivenList { items } = client.read(answer)?;
        Ok(list(items))
    })
}

fn list(given: Vec<Given>) -> String {
    let now = OffsetDateTime::now_utc();
    let row = |given: Given| {
        vec![
            given.id,
            given.instance_uid,
            given.action,
            given.status,
            age(given.created_at.as_deref(), now),
            or_dash(&given.reason),
        ]
    };
    table(&["COMMAND", "INSTANCE_UID", "ACTION", "STATUS", "AGE", "REASON"], given.into_iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_bounded() {
        assert_eq!(parse_ttl("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_ttl("24h"), Ok(Duration::from_secs(86_400)));
        for bad in ["0", "500ms", "1500ms", "24h1s", "5", "soon"] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }
}
