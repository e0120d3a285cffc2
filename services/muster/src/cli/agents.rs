//! `muster agents`: the fleet.

use std::collections::BTreeMap;

use clap::Subcommand;
use muster_domain::ids::InstanceUid;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::client::{Body, CliError, Client};
use super::commands::{self, MessageArgs, Order};
use super::explain;
use super::output::{Page, Printer, age, moment, or_dash, plain, table, yes_or_no};

/// Commands on agents.
#[derive(Debug, Clone, Subcommand)]
pub enum AgentsCommand {
    /// List agents.
    List {
        /// Only agents that this selects, by labels and attributes: 'env=prod,os.type in (linux,windows)'.
        #[arg(short = 'l', long, value_name = "SELECTOR")]
        selector: Option<String>,
        /// Only agents that are one of these: connected, unreachable, disconnected, shut_down.
        #[arg(long, value_name = "KIND,...")]
        liveness: Option<String>,
        /// Only agents that run something else than the config that they had applied.
        #[arg(long)]
        drifted: bool,
        /// At most so many agents.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
    },
    /// Show an agent: what it reports, and what it should run.
    Get {
        /// The agent's instance_uid.
        #[arg(value_name = "UID")]
        uid: String,
    },
    /// Show why an agent has what it has: assignments, versions, values and where each comes from.
    Explain {
        /// The agent's instance_uid.
        #[arg(value_name = "UID")]
        uid: String,
    },
    /// Offer an agent again what it could not apply, or take for right what a drifted one runs.
    Retry {
        /// The agent's instance_uid.
        #[arg(value_name = "UID")]
        uid: String,
    },
    /// Set labels of an agent (key=value), or remove them (key-).
    Label {
        /// The agent's instance_uid.
        #[arg(value_name = "UID")]
        uid: String,
        /// A label to set or to remove.
        #[arg(value_name = "KEY=VALUE|KEY-", required = true)]
        changes: Vec<String>,
    },
    /// Restart agents that can (AcceptsRestartCommand).
    Restart(Order),
    /// Pause agents that can (io.opentelemetry.pause): they collect and send nothing.
    Pause(Order),
    /// Let paused agents go on.
    Resume(Order),
    /// Close the connection of agents; they come back by themselves.
    Disconnect(Order),
    /// Ask agents for their full state.
    Report(Order),
    /// Send agents a custom message.
    Message(MessageArgs),
    /// List the latest commands of an agent, and what became of them.
    Commands {
        /// The agent's instance_uid.
        #[arg(value_name = "UID")]
        uid: String,
    },
}

impl AgentsCommand {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        match self {
            Self::List { selector, liveness, drifted, limit } => {
                let mut query = Vec::new();
                query.extend(selector.as_deref().map(|selector| ("selector", selector)));
                query.extend(liveness.as_deref().map(|liveness| ("liveness", liveness)));
                query.extend(drifted.then_some(("drifted", "true")));
                let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
                let answer = client.list(&["agents"], &query, limit).await?;
                printer.print(answer, |answer| Ok(list(client.read(answer)?, OffsetDateTime::now_utc())))
            }
            Self::Get { uid } => {
                let answer = client.get(&["agents", &check_uid(&uid)?], &[]).await?;
                printer.print(answer, |answer| Ok(page(client.read(answer)?, OffsetDateTime::now_utc())))
            }
            Self::Explain { uid } => explain::explain(&uid, client, printer).await,
            Self::Retry { uid } => {
                let path = ["agents", &check_uid(&uid)?, "retry"];
                let answer = client.call(Method::POST, &path, &[], Body::Nothing).await?;
                printer.print(answer, |_| Ok(format!("{uid} is offered its config again\n")))
            }
            Self::Restart(order) => order.run("restart", Value::Null, client, printer).await,
            Self::Pause(order) => order.run("pause", Value::Null, client, printer).await,
            Self::Resume(order) => order.run("resume", Value::Null, client, printer).await,
            Self::Disconnect(order) => order.run("disconnect", Value::Null, client, printer).await,
            Self::Report(order) => order.run("report", Value::Null, client, printer).await,
            Self::Message(message) => message.run(client, printer).await,
            Self::Commands { uid } => commands::latest(&uid, client, printer).await,
            Self::Label { uid, changes } => {
                let (uid, patch) = (check_uid(&uid)?, patch(&changes)?);
                let path = ["agents", &uid, "labels"];
                let answer = client.call(Method::PATCH, &path, &[], Body::MergePatch(patch)).await?;
                printer.print(answer, |answer| {
                    let Labels { labels } = client.read(answer)?;
                    Ok(table(&["KEY", "VALUE"], labels.into_iter().map(|(key, value)| vec![key, value])))
                })
            }
        }
    }
}

/// The uid as the API writes it.
pub(super) fn check_uid(uid: &str) -> Result<String, CliError> {
    let uid: InstanceUid = uid.parse().map_err(|error| CliError::Usage(format!("{error}")))?;
    Ok(uid.to_string())
}

/// A merge patch from `key=value` and `key-`.
fn patch(changes: &[String]) -> Result<Value, CliError> {
    let mut patch = Map::new();
    for change in changes {
        let (key, value) = match (change.split_once('='), change.strip_suffix('-')) {
            (Some((key, value)), _) => (key, Value::from(value)),
            (None, Some(key)) => (key, Value::Null),
            (None, None) => {
                let what =
                    format!("{change:?} is not a change of labels: write key=value to set, key- to remove");
                return Err(CliError::Usage(what));
            }
        };
        if key.is_empty() {
            return Err(CliError::Usage(format!("{change:?} has no key")));
        }
        if patch.insert(key.to_owned(), value).is_some() {
            return Err(CliError::Usage(format!("the label {key:?} is changed twice")));
        }
    }
    Ok(Value::Object(patch))
}

#[derive(Deserialize)]
struct Agents {
    items: Vec<Agent>,
}

#[derive(Deserialize)]
struct Labels {
    labels: BTreeMap<String, String>,
}

/// An agent of the API. What it may lack is left out of tables.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Agent {
    instance_uid: String,
    connected: bool,
    liveness: String,
    healthy: Option<bool>,
    status: String,
    last_seen: Option<String>,
    first_seen: Option<String>,
    attributes: Attributes,
    labels: BTreeMap<String, String>,
    capabilities: Vec<String>,
    custom_capabilities: Vec<String>,
    available_components: Option<AvailableComponents>,
    remote_config: RemoteConfig,
    drift: Option<Drift>,
    effective_config: BTreeMap<String, File>,
    health: Option<Health>,
    session: Option<Session>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Attributes {
    identifying: BTreeMap<String, Value>,
    non_identifying: BTreeMap<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RemoteConfig {
    desired_hash: Option<String>,
    reported_hash: Option<String>,
    status: String,
    error_message: String,
    failed_hash: Option<String>,
    held: Option<String>,
    history: Vec<ConfigChange>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Drift {
    kind: String,
    since: Option<String>,
    expected: String,
    found: Option<String>,
    offered_again_at: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConfigChange {
    at: String,
    hash: Option<String>,
    status: String,
    error_message: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AvailableComponents {
    hash: String,
    components: Option<BTreeMap<String, Component>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Component {
    metadata: BTreeMap<String, Value>,
    components: BTreeMap<String, Component>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    body: String,
    content_type: String,
    encoding: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Health {
    healthy: bool,
    status: String,
    last_error: String,
    start_time: Option<String>,
    status_time: Option<String>,
    attributes: BTreeMap<String, Value>,
    components: BTreeMap<String, Health>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Session {
    gateway: String,
    transport: String,
    remote_addr: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    end_reason: Option<String>,
    silent_since: Option<String>,
}

impl Agent {
    fn attribute(&self, key: &str) -> String {
        let Attributes { identifying, non_identifying } = &self.attributes;
        identifying.get(key).or_else(|| non_identifying.get(key)).map(plain).unwrap_or_default()
    }

    /// Whether it is there, and if not, why in a word.
    fn connected(&self) -> String {
        match self.liveness.as_str() {
            "unreachable" => "unreachable".to_owned(),
            "shut_down" => "shut down".to_owned(),
            _ => yes_or_no(Some(self.connected)),
        }
    }

    /// How far it is with its remote config, in a word.
    fn config(&self) -> String {
        match &self.remote_config {
            RemoteConfig { held: Some(_), .. } => "HELD".to_owned(),
            _ if self.drift.is_some() => "DRIFTED".to_owned(),
            RemoteConfig { status, .. } if status == "UNSET" => "-".to_owned(),
            RemoteConfig { status, .. } => or_dash(status),
        }
    }
}

fn list(agents: Agents, now: OffsetDateTime) -> String {
    let row = |agent: Agent| {
        vec![
            agent.instance_uid.clone(),
            or_dash(&agent.attribute("service.name")),
            or_dash(&agent.attribute("service.version")),
            agent.connected(),
            yes_or_no(agent.healthy),
            agent.config(),
            age(agent.last_seen.as_deref(), now),
        ]
    };
    let headings = ["INSTANCE_UID", "NAME", "VERSION", "CONNECTED", "HEALTHY", "CONFIG", "LAST SEEN"];
    table(&headings, agents.items.into_iter().map(row))
}

fn page(agent: Agent, now: OffsetDateTime) -> String {
    let config = &agent.remote_config;
    let hash = |hash: &Option<String>| hash.clone().unwrap_or_default();
    let values = |values: &BTreeMap<String, Value>| {
        values.iter().map(|(key, value)| (key.clone(), plain(value))).collect::<Vec<_>>()
    };
    let mut page = Page::default()
        .pairs(
            "Agent",
            [
                ("instance_uid", agent.instance_uid.clone()),
                ("name", agent.attribute("service.name")),
                ("version", agent.attribute("service.version")),
                ("connected", agent.connected()),
                ("healthy", yes_or_no(agent.healthy)),
                ("status", agent.status.clone()),
                ("last seen", moment(agent.last_seen.as_deref(), now)),
                ("first seen", moment(agent.first_seen.as_deref(), now)),
            ],
        )
        .pairs("Labels", agent.labels.clone())
        .pairs("Identifying attributes", values(&agent.attributes.identifying))
        .pairs("Other attributes", values(&agent.attributes.non_identifying));
    if let Some(session) = &agent.session {
        let peer = format!("{} from {}", or_dash(&session.transport), or_dash(&session.remote_addr));
        page = page.pairs(
            "Session",
            [
                ("connection", peer),
                ("gateway", session.gateway.clone()),
                ("started", moment(session.started_at.as_deref(), now)),
                ("ended", moment(session.ended_at.as_deref(), now)),
                ("reason", session.end_reason.clone().unwrap_or_default()),
                ("silent since", moment(session.silent_since.as_deref(), now)),
            ],
        );
    }
    let names = |names: &[String]| names.iter().map(|name| name.clone() + "\n").collect::<String>();
    page = page
        .part("Capabilities", &names(&agent.capabilities))
        .part("Custom capabilities", &names(&agent.custom_capabilities))
        .pairs(
            "Remote config",
            [
                ("status", agent.config()),
                ("error", config.error_message.clone()),
                ("held back", config.held.clone().unwrap_or_default()),
                ("desired", hash(&config.desired_hash)),
                ("reported", hash(&config.reported_hash)),
                ("failed", hash(&config.failed_hash)),
            ],
        );
    if let Some(drift) = &agent.drift {
        page = page.pairs(
            "Drift",
            [
                ("told by", drift.kind.clone()),
                ("since", moment(drift.since.as_deref(), now)),
                ("expected", drift.expected.clone()),
                ("found", drift.found.clone().unwrap_or_else(|| "nothing".to_owned())),
                ("offered again", drift.offered_again_at.clone().unwrap_or_default()),
            ],
        );
    }
    if !config.history.is_empty() {
        let row = |change: &ConfigChange| {
            let at = age(Some(&change.at), now);
            vec![at, change.status.clone(), hash(&change.hash), change.error_message.clone()]
        };
        let rows = config.history.iter().map(row);
        page = page.part("Remote config history", &table(&["WHEN", "STATUS", "HASH", "ERROR"], rows));
    }
    if let Some(health) = &agent.health {
        let mut rows = Vec::new();
        add_health(&mut rows, "agent", health, 0, now);
        let headings = ["COMPONENT", "HEALTHY", "STATUS", "SINCE", "UP", "LAST ERROR", "ATTRIBUTES"];
        page = page.part("Health", &table(&headings, rows));
    }
    if let Some(available) = &agent.available_components {
        page = page.part("Available components", &components(available));
    }
    for (name, file) in &agent.effective_config {
        let kind = file.encoding.as_ref().unwrap_or(&file.content_type);
        let kind = if kind.is_empty() { String::new() } else { format!(" ({kind})") };
        let name = if name.is_empty() { "(no name)" } else { name };
        let body = if file.body.is_empty() { "(empty)" } else { &file.body };
        page = page.part(&format!("Effective config: {name}{kind}"), body);
    }
    page.finish()
}

/// Attributes in one line.
fn facts(attributes: &BTreeMap<String, Value>) -> String {
    attributes.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect::<Vec<_>>().join(" ")
}

fn components(available: &AvailableComponents) -> String {
    match &available.components {
        None => format!("The agent has not reported the list yet. Its hash: {}\n", available.hash),
        Some(list) => {
            let mut rows = Vec::new();
            add_components(&mut rows, list, 0);
            table(&["COMPONENT", "FACTS"], rows)
        }
    }
}

/// A row for each component, those inside one indented under it.
fn add_components(rows: &mut Vec<Vec<String>>, list: &BTreeMap<String, Component>, depth: usize) {
    for (name, component) in list {
        rows.push(vec!["  ".repeat(depth) + name, facts(&component.metadata)]);
        add_components(rows, &component.components, depth + 1);
    }
}

/// A row for each part, those of a part indented under it.
fn add_health(rows: &mut Vec<Vec<String>>, name: &str, health: &Health, depth: usize, now: OffsetDateTime) {
    rows.push(vec![
        "  ".repeat(depth) + name,
        yes_or_no(Some(health.healthy)),
        or_dash(&health.status),
        age(health.status_time.as_deref(), now),
        age(health.start_time.as_deref(), now),
        health.last_error.clone(),
        facts(&health.attributes),
    ]);
    for (name, part) in &health.components {
        add_health(rows, name, part, depth + 1, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(changes: &[&str]) -> Result<Value, String> {
        let changes: Vec<_> = changes.iter().map(|change| (*change).to_owned()).collect();
        patch(&changes).map_err(|error| error.to_string())
    }

    #[test]
    fn label_changes_are_kubectl_s() {
        assert_eq!(
            changes(&["env=prod", "team-", "note=a=b-", "empty="]).unwrap(),
            serde_json::json!({"env": "prod", "team": null, "note": "a=b-", "empty": ""})
        );
        let bad = [
            (&["env"][..], "\"env\" is not a change of labels: write key=value to set, key- to remove"),
            (&["=x"], "\"=x\" has no key"),
            (&["-"], "\"-\" has no key"),
            (&["a=1", "a-"], "the label \"a\" is changed twice"),
        ];
        for (given, expected) in bad {
            assert_eq!(changes(given).unwrap_err(), expected);
        }
    }
}
