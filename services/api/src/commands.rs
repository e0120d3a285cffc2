//! `/api/v1/commands` and `/api/v1/agents/{instance_uid}/commands`: orders to agents.
//!
//! A command is queued here; control sends it at most once, and says what became of it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_domain::command::{Action, Command, CommandState, MAX_CUSTOM_DATA, TTL};
use muster_domain::ids::{AgentKey, CommandId, InstanceUid};
use muster_domain::report::CustomMessage;
use muster_domain::selector::{AgentSelector, Selector};
use muster_ports::store::{QueueError, StoredAgent};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::Shared;
use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::views::rfc3339;

/// Most commands of a tenant that wait at once, and so most agents of one request.
const MAX_QUEUED: usize = 10_000;
/// Most bytes of custom messages that one request makes.
const MAX_BYTES: usize = 16 << 20;
/// Agents read at a time to find those that a selector matches.
const PAGE: usize = 1000;
/// Agents of a selector that are named.
const NAMED: usize = 10;
/// Commands that are listed unless the request says otherwise, and at most.
const LISTED: (usize, usize) = (20, 100);
/// Time to live of a command that names none.
const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// What an agent is to do.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCommand {
    /// `restart`, `pause`, `resume`, `disconnect`, `report` (its full state) or `message`.
    action: String,
    /// For how long it may wait to be sent, 1 to 86400; 300 by default.
    ttl_seconds: Option<u64>,
    /// The custom capability of a message.
    capability: Option<String>,
    /// The type of a message within its capability.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// What a message says, as text. At most 64 KiB.
    data: Option<String>,
    /// What a message says, in base64, in the place of `data`.
    data_base64: Option<String>,
}

/// What agents are to do, and which.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCommands {
    /// Label selector over labels and attributes; the empty one selects every agent.
    selector: String,
    /// Only count the agents.
    #[serde(default)]
    dry_run: bool,
    /// How many agents the selector is expected to match; refused with 409 if it matches others by now.
    /// Required unless `dry_run` is set.
    expect: Option<usize>,
    /// What each of them is to do.
    command: NewCommand,
}

/// A command, and what became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CommandView {
    /// Its id.
    id: String,
    /// The agent that it is for.
    instance_uid: String,
    /// What the agent is to do.
    action: &'static str,
    /// `queued`; `sent`: handed to the gateway that holds the agent's session, once, whatever the agent
    /// makes of it; `expired`; `refused`.
    status: &'static str,
    /// Why it is not sent.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// When it was given (RFC 3339).
    created_at: String,
    /// From when on it is not sent (RFC 3339).
    expires_at: String,
    /// When it was sent, expired or refused (RFC 3339).
    settled_at: Option<String>,
    /// Who gave it.
    actor: String,
    /// The custom capability of a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    capability: Option<String>,
    /// The type of a message.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    /// How many bytes a message says.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_bytes: Option<usize>,
}

/// Commands.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CommandList {
    /// The commands.
    items: Vec<CommandView>,
}

/// The agents that a selector matches, and the commands that they got.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Selected {
    /// How many agents it matches.
    count: usize,
    /// How many of them are connected.
    connected: usize,
    /// The first of them.
    agents: Vec<SelectedAgent>,
    /// One command for each agent; none in a dry run.
    commands: Vec<GivenCommand>,
}

/// An agent that a selector matches.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SelectedAgent {
    /// Its instance_uid.
    instance_uid: String,
    /// Its label `name`, or else its service.name; may be empty.
    name: String,
}

/// A command that was queued.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GivenCommand {
    /// Its id.
    id: String,
    /// The agent that it is for.
    instance_uid: String,
}

/// How many to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct LatestQuery {
    /// Commands to list, 1 to 100; 20 by default.
    limit: Option<usize>,
}

/// Which to show.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdsQuery {
    /// Ids of commands, with commas between, at most 100.
    ids: String,
}

/// Gives one agent a command.
#[utoipa::path(
    post, path = "/api/v1/agents/{instance_uid}/commands", tag = "commands", operation_id = "commandAgent",
    params(("instance_uid" = String, Path, description = "The agent's instance_uid.")),
    request_body = NewCommand,
    responses(
        (status = 202, body = CommandView),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn give(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(uid): Path<String>,
    body: Result<Json<NewCommand>, JsonRejection>,
) -> Result<(StatusCode, Json<CommandView>), ApiError> {
    let Json(new) = body.map_err(|error| rejected(&error))?;
    let key = caller.key(&uid)?;
    let (action, ttl) = new.checked()?;
    if shared.engines.fleet.agent(&key).await?.is_none() {
        return Err(ApiError::NotFound(format!("there is no agent {uid}")));
    }
    let command = shared.command(&caller, key.uid, &action, ttl);
    let target = format!("agents/{}", key.uid);
    shared.give(&caller, ("commandAgent", target), std::slice::from_ref(&command)).await?;
    Ok((StatusCode::ACCEPTED, Json(view(command))))
}

/// Gives every agent that a selector matches a command, each a command of its own.
#[utoipa::path(
    post, path = "/api/v1/commands", tag = "commands", operation_id = "commandAgents",
    request_body = NewCommands,
    responses(
        (status = 200, description = "A dry run.", body = Selected),
        (status = 202, body = Selected),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn give_many(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    body: Result<Json<NewCommands>, JsonRejection>,
) -> Result<(StatusCode, Json<Selected>), ApiError> {
    let Json(new) = body.map_err(|error| rejected(&error))?;
    let (action, ttl) = new.command.checked()?;
    let requirements: Selector =
        new.selector.parse().map_err(|error| ApiError::BadRequest(format!("selector: {error}")))?;
    let agents = matching(&shared, &caller, requirements).await?;
    let count = agents.len();
    if let Action::Message(message) = &action
        && message.data.len().saturating_mul(count) > MAX_BYTES
    {
        return Err(ApiError::BadRequest(format!(
            "data: {} bytes for each of {count} agents are more than {MAX_BYTES} together: make it smaller, or select fewer",
            message.data.len()
        )));
    }
    let mut selected = Selected {
        count,
        connected: agents.iter().filter(|stored| stored.agent.live_session().is_some()).count(),
        agents: agents.iter().take(NAMED).map(named).collect(),
        commands: Vec::new(),
    };
    if new.dry_run {
        return Ok((StatusCode::OK, Json(selected)));
    }
    match new.expect {
        None => {
            let what =
                "expect: say how many agents the selector is expected to match; ask with dry_run first";
            return Err(ApiError::BadRequest(what.to_owned()));
        }
        Some(expect) if expect != count => {
            return Err(ApiError::Conflict(format!(
                "expect: the selector matches {count} agents, not {expect}: look again, and expect {count}"
            )));
        }
        Some(_) => {}
    }
    let commands: Vec<_> =
        agents.iter().map(|stored| shared.command(&caller, stored.agent.key.uid, &action, ttl)).collect();
    let target = format!("agents?selector={}", new.selector);
    shared.give(&caller, ("commandAgents", target), &commands).await?;
    let given = |command: &Command| GivenCommand {
        id: command.id.to_string(),
        instance_uid: command.key.uid.to_string(),
    };
    selected.commands = commands.iter().map(given).collect();
    Ok((StatusCode::ACCEPTED, Json(selected)))
}

/// Lists the latest commands of an agent, the last one first.
#[utoipa::path(
    get, path = "/api/v1/agents/{instance_uid}/commands", tag = "commands", operation_id = "listAgentCommands",
    params(("instance_uid" = String, Path, description = "The agent's instance_uid."), LatestQuery),
    responses((status = 200, body = CommandList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn latest(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(uid): Path<String>,
    query: Result<Query<LatestQuery>, QueryRejection>,
) -> Result<Json<CommandList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let limit = query.limit.unwrap_or(LISTED.0);
    if !(1..=LISTED.1).contains(&limit) {
        return Err(ApiError::BadRequest(format!("limit: must be 1 to {}, not {limit}", LISTED.1)));
    }
    let found = shared.engines.commands.latest_commands(&caller.key(&uid)?, limit).await?;
    Ok(Json(CommandList { items: found.into_iter().map(view).collect() }))
}

/// Shows commands. Those that are not there, or were settled more than 7 days ago, are left out.
#[utoipa::path(
    get, path = "/api/v1/commands", tag = "commands", operation_id = "listCommands", params(IdsQuery),
    responses((status = 200, body = CommandList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<IdsQuery>, QueryRejection>,
) -> Result<Json<CommandList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let ids: Result<Vec<CommandId>, _> = query.ids.split(',').map(str::parse).collect();
    let ids = ids.map_err(|error| ApiError::BadRequest(format!("ids: {error}")))?;
    if ids.len() > LISTED.1 {
        return Err(ApiError::BadRequest(format!("ids: at most {} are shown at once", LISTED.1)));
    }
    let found = shared.engines.commands.commands(&caller.tenant, &ids).await?;
    Ok(Json(CommandList { items: found.into_iter().map(view).collect() }))
}

/// Shows one command.
#[utoipa::path(
    get, path = "/api/v1/commands/{id}", tag = "commands", operation_id = "getCommand",
    params(("id" = String, Path, description = "The command's id.")),
    responses((status = 200, body = CommandView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<CommandView>, ApiError> {
    let id: CommandId = id.parse().map_err(|error| ApiError::BadRequest(format!("{error}")))?;
    let found = shared.engines.commands.commands(&caller.tenant, &[id]).await?.pop();
    let found = found.ok_or_else(|| ApiError::NotFound(format!("there is no command {id}")))?;
    Ok(Json(view(found)))
}

fn rejected(error: &JsonRejection) -> ApiError {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge("the request is too large".to_owned()),
        _ => ApiError::BadRequest(error.body_text()),
    }
}

impl NewCommand {
    /// What is asked for, and for how long it may wait.
    fn checked(self) -> Result<(Action, Duration), ApiError> {
        let bad = |what: String| Err(ApiError::BadRequest(what));
        let ttl = self.ttl_seconds.map_or(DEFAULT_TTL, Duration::from_secs);
        if !(TTL.0..=TTL.1).contains(&ttl) {
            let (least, most) = (TTL.0.as_secs(), TTL.1.as_secs());
            return bad(format!("ttl_seconds: must be {least} to {most}, not {}", ttl.as_secs()));
        }
        let message = match (self.capability, self.kind, self.data, self.data_base64) {
            (None, None, None, None) => None,
            (_, _, Some(_), Some(_)) => {
                return bad("data: is given twice; leave out data or data_base64".to_owned());
            }
            (Some(capability), Some(kind), text, base64) => {
                Some(CustomMessage { capability, kind, data: content(text, base64)? })
            }
            (None, ..) => {
                return bad("capability: is missing; a message names its custom capability".to_owned());
            }
            (_, None, ..) => return bad("type: is missing; a message names its type".to_owned()),
        };
        let is_message = message.is_some();
        let Some(action) = Action::named(&self.action, message) else {
            let known = ["restart", "pause", "resume", "disconnect", "report"];
            return bad(match (self.action.as_str(), is_message) {
                ("message", _) => "capability: is missing; a message names its custom capability".to_owned(),
                (name, true) if known.contains(&name) => {
                    format!(
                        "capability: only a message has one, {name} does not: leave out capability, type and data"
                    )
                }
                (name, _) => format!(
                    "action: {name:?} is none; use restart, pause, resume, disconnect, report or message"
                ),
            });
        };
        action.check().map_err(ApiError::BadRequest)?;
        Ok((action, ttl))
    }
}

fn content(text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, ApiError> {
    let Some(base64) = base64 else { return Ok(text.unwrap_or_default().into_bytes()) };
    // Base64 takes four bytes for three.
    if base64.len() > MAX_CUSTOM_DATA / 3 * 4 + 4 {
        return Err(ApiError::BadRequest(format!(
            "data_base64: at most {MAX_CUSTOM_DATA} bytes are sent: make it smaller"
        )));
    }
    STANDARD
        .decode(base64)
        .map_err(|error| ApiError::BadRequest(format!("data_base64: is not base64: {error}")))
}

impl Shared {
    fn command(&self, caller: &Caller, uid: InstanceUid, action: &Action, ttl: Duration) -> Command {
        let created_at = (self.engines.clock)();
        Command {
            id: CommandId(Uuid::now_v7()),
            key: AgentKey { tenant: caller.tenant.clone(), uid },
            action: action.clone(),
            created_at,
            expires_at: created_at.plus(ttl),
            actor: caller.actor.clone(),
            state: CommandState::QUEUED,
        }
    }

    /// Queues commands and wakes control.
    async fn give(
        &self,
        caller: &Caller,
        (operation, target): (&str, String),
        commands: &[Command],
    ) -> Result<(), ApiError> {
        let tenant = &caller.tenant;
        let audit = caller.entry(operation, target, (self.engines.clock)());
        let audit = audit.with_states(String::new(), given(commands));
        match self.engines.commands.queue(tenant, commands, MAX_QUEUED, Some(&audit)).await {
            Ok(()) => {}
            Err(QueueError::Full { queued }) => {
                return Err(ApiError::Conflict(format!(
                    "{queued} commands wait already, at most {MAX_QUEUED} may: wait until some are sent or have expired"
                )));
            }
            Err(QueueError::Engine(error)) => return Err(error.into()),
        }
        if let Some(first) = commands.first() {
            let (action, agents, command) = (first.action.name(), commands.len(), first.id);
            info!(event = "commands_given", %tenant, action, agents, %command, actor = first.actor, "commands were queued");
            self.wake().await;
        }
        Ok(())
    }
}

/// Every agent that matches, as far as one request may.
async fn matching(
    shared: &Shared,
    caller: &Caller,
    requirements: Selector,
) -> Result<Vec<StoredAgent>, ApiError> {
    let selector = AgentSelector { requirements, ..AgentSelector::default() };
    let mut found: Vec<StoredAgent> = Vec::new();
    loop {
        let after = found.last().map(|stored| stored.agent.key.uid);
        let page = shared.engines.fleet.page(&caller.tenant, &selector, after, PAGE).await?;
        let is_last = page.len() < PAGE;
        found.extend(page);
        if found.len() > MAX_QUEUED {
            return Err(ApiError::BadRequest(format!(
                "selector: matches more than {MAX_QUEUED} agents: select fewer at once"
            )));
        }
        if is_last {
            return Ok(found);
        }
    }
}

/// What the audit log says of commands: what they are and whom they are for, not what messages say.
fn given(commands: &[Command]) -> String {
    let Some(first) = commands.first() else { return String::new() };
    let ids: Vec<_> = commands.iter().take(NAMED).map(|command| command.id.to_string()).collect();
    let message = match &first.action {
        Action::Message(message) => {
            json!({"capability": message.capability, "type": message.kind, "bytes": message.data.len()})
        }
        _ => Value::Null,
    };
    let (action, expires_at) = (first.action.name(), rfc3339(first.expires_at));
    json!({"action": action, "message": message, "commands": commands.len(), "first": ids, "expires_at": expires_at})
        .to_string()
}

fn named(stored: &StoredAgent) -> SelectedAgent {
    let description = stored.agent.state.description.as_ref();
    let service = description.and_then(|description| description.attribute("service.name")?.as_str());
    let name = stored.labels.get("name").map(String::as_str).or(service).unwrap_or_default();
    SelectedAgent { instance_uid: stored.agent.key.uid.to_string(), name: name.to_owned() }
}

fn view(command: Command) -> CommandView {
    let action = command.action.name();
    let message = match command.action {
        Action::Message(message) => Some(message),
        _ => None,
    };
    let data_bytes = message.as_ref().map(|message| message.data.len());
    let (capability, kind) = message.map(|message| (message.capability, message.kind)).unzip();
    CommandView {
        id: command.id.to_string(),
        instance_uid: command.key.uid.to_string(),
        action,
        status: command.state.status.name(),
        reason: command.state.reason,
        created_at: rfc3339(command.created_at),
        expires_at: rfc3339(command.expires_at),
        settled_at: command.state.settled_at.map(rfc3339),
        actor: command.actor,
        capability,
        kind,
        data_bytes,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(body: Value) -> Result<(Action, Duration), String> {
        let new: NewCommand = serde_json::from_value(body).map_err(|error| error.to_string())?;
        new.checked().map_err(|error| match error {
            ApiError::BadRequest(text) => text,
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn a_command_is_read() {
        assert_eq!(checked(json!({"action": "restart"})), Ok((Action::Restart, DEFAULT_TTL)));
        let (capability, kind) = ("c".to_owned(), "t".to_owned());
        let message = |data: &[u8]| {
            let data = data.to_vec();
            Action::Message(CustomMessage { capability: capability.clone(), kind: kind.clone(), data })
        };
        let body = json!({"action": "message", "capability": "c", "type": "t", "ttl_seconds": 1});
        assert_eq!(checked(body), Ok((message(b""), Duration::from_secs(1))));
        let body = json!({"action": "message", "capability": "c", "type": "t", "data": "ä"});
        assert_eq!(checked(body), Ok((message("ä".as_bytes()), DEFAULT_TTL)));
        let body = json!({"action": "message", "capability": "c", "type": "t", "data_base64": "AP8="});
        assert_eq!(checked(body), Ok((message(&[0, 0xff]), DEFAULT_TTL)));
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        let message = |more: Value| {
            let mut body = json!({"action": "message", "capability": "c", "type": "t"});
            if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
                body.extend(more);
            }
            body
        };
        let cases = [
            (json!({"action": "reboot"}), "action: "),
            (json!({"action": "restart", "ttl_seconds": 0}), "ttl_seconds: "),
            (json!({"action": "restart", "ttl_seconds": 86_401}), "ttl_seconds: "),
            (json!({"action": "restart", "capability": "c", "type": "t"}), "capability: only a message"),
            (json!({"action": "message"}), "capability: is missing"),
            (json!({"action": "message", "type": "t"}), "capability: is missing"),
            (json!({"action": "message", "capability": "c"}), "type: is missing"),
            (message(json!({"capability": ""})), "capability: must be"),
            (message(json!({"type": "a\nb"})), "type: must be"),
            (message(json!({"data": "x", "data_base64": "AA=="})), "data: is given twice"),
            (message(json!({"data_base64": "%"})), "data_base64: is not base64"),
            (message(json!({"data_base64": "A".repeat(1 << 20)})), "data_base64: at most"),
            (message(json!({"data": "x".repeat(MAX_CUSTOM_DATA + 1)})), "data: is 65537 bytes"),
            (json!({"action": "restart", "when": "now"}), "unknown field `when`"),
        ];
        for (body, expected) in cases {
            let problem = checked(body.clone()).unwrap_err();
            assert!(problem.starts_with(expected), "{problem:?}, for {body}");
        }
    }
}
