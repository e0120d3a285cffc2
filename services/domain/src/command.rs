//! Orders of operators to agents: what they are, what they need, and when one may be sent.
//!
//! A command is sent at most once: it is settled in the store before it leaves. What is sent may be lost
//! on its way; what an agent makes of it, it reports.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agent::{Agent, Session, Transport};
use crate::capabilities::AgentCapabilities;
use crate::ids::{AgentKey, CommandId, Timestamp};
use crate::report::CustomMessage;

/// The custom capability by which agents pause and resume (specification, "Pause/Resume Example").
pub const PAUSE_CAPABILITY: &str = "io.opentelemetry.pause";
/// Shortest and longest time for which a command may wait.
pub const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
/// Longest name of a custom capability, and longest type of a custom message, in bytes.
pub const MAX_CUSTOM_NAME: usize = 256;
/// Largest content of a custom message to an agent, in bytes.
pub const MAX_CUSTOM_DATA: usize = 64 << 10;

/// An order of an operator to one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its id.
    pub id: CommandId,
    /// The agent that it is for.
    pub key: AgentKey,
    /// What the agent is to do.
    pub action: Action,
    /// When it was given.
    pub created_at: Timestamp,
    /// From when on it is not sent any more.
    pub expires_at: Timestamp,
    /// Who gave it, for people.
    pub actor: String,
    /// What became of it.
    pub state: CommandState,
}

/// What an agent is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Restart (ServerToAgentCommand): only with AcceptsRestartCommand, alone in its message.
    Restart,
    /// Stop collecting and sending telemetry: only with [`PAUSE_CAPABILITY`].
    Pause,
    /// Collect and send again: only with [`PAUSE_CAPABILITY`].
    Resume,
    /// End the session.
    Disconnect,
    /// Report the full state.
    ReportFullState,
    /// Take this message: only with its capability.
    Message(CustomMessage),
}

impl Action {
    /// As the API, the store and metrics name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Disconnect => "disconnect",
            Self::ReportFullState => "report",
            Self::Message(_) => "message",
        }
    }

    /// The action with this name; that of a message needs the message.
    pub fn named(name: &str, message: Option<CustomMessage>) -> Option<Self> {
        match (name, message) {
            ("restart", None) => Some(Self::Restart),
            ("pause", None) => Some(Self::Pause),
            ("resume", None) => Some(Self::Resume),
            ("disconnect", None) => Some(Self::Disconnect),
            ("report", None) => Some(Self::ReportFullState),
            ("message", Some(message)) => Some(Self::Message(message)),
            _ => None,
        }
    }

    /// The custom message that it is on the wire, if it is one.
    pub fn as_message(&self) -> Option<CustomMessage> {
        let pause = |kind: &str| {
            Some(CustomMessage {
                capability: PAUSE_CAPABILITY.to_owned(),
                kind: kind.to_owned(),
                data: Vec::new(),
            })
        };
        match self {
            Self::Pause => pause("pause"),
            Self::Resume => pause("resume"),
            Self::Message(message) => Some(message.clone()),
            Self::Restart | Self::Disconnect | Self::ReportFullState => None,
        }
    }

    /// The custom capability that the agent must have for it.
    fn custom_capability(&self) -> Option<&str> {
        match self {
            Self::Pause | Self::Resume => Some(PAUSE_CAPABILITY),
            Self::Message(message) => Some(&message.capability),
            Self::Restart | Self::Disconnect | Self::ReportFullState => None,
        }
    }

    /// Checks what an operator asks for.
    ///
    /// # Errors
    /// A text that names the field and the fix.
    pub fn check(&self) -> Result<(), String> {
        let Self::Message(message) = self else { return Ok(()) };
        check_name("capability", &message.capability)?;
        check_name("type", &message.kind)?;
        if message.data.len() > MAX_CUSTOM_DATA {
            let length = message.data.len();
            return Err(format!(
                "data: is {length} bytes, at most {MAX_CUSTOM_DATA} are sent: make it smaller"
            ));
        }
        Ok(())
    }
}

fn check_name(field: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_CUSTOM_NAME || name.chars().any(char::is_control) {
        return Err(format!(
            "{field}: must be 1 to {MAX_CUSTOM_NAME} bytes of text without control characters"
        ));
    }
    Ok(())
}

/// Whether a command is still to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits to be sent.
    Queued,
    /// It was handed to the gateway that holds the agent's session.
    Sent,
    /// Its time was over before it could be sent.
    Expired,
    /// The agent cannot do it.
    Refused,
}

impl Status {
    /// As the API, the store and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Expired => "expired",
            Self::Refused => "refused",
        }
    }

    /// The status with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Queued, Self::Sent, Self::Expired, Self::Refused]
            .into_iter()
            .find(|status| status.name() == name)
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandState {
    /// Whether it is still to be sent.
    pub status: Status,
    /// Why, for people; empty where there is nothing to say.
    pub reason: String,
    /// When that was decided; none while it is queued.
    pub settled_at: Option<Timestamp>,
}

impl CommandState {
    /// Of a new command.
    pub const QUEUED: Self = Self { status: Status::Queued, reason: String::new(), settled_at: None };

    /// Of a command that is settled now.
    pub fn settled(status: Status, reason: impl Into<String>, now: Timestamp) -> Self {
        Self { status, reason: reason.into(), settled_at: Some(now) }
    }
}

/// What is to be done with a queued command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Settle it as sent, then send it to this session.
    Send(&'a Session),
    /// Leave it queued.
    Wait(Waiting),
    /// Settle it as refused.
    Refuse(Refusal),
    /// Settle it as expired: what it waited for did not come.
    Expire(Waiting),
}

/// What a command waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The agent's next session.
    Session,
    /// A report that says what the agent can do.
    Report,
    /// Its turn.
    Turn,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "the agent was not connected",
            Self::Report => "the agent has not said what it can do",
            Self::Turn => "it was not looked at in time",
        })
    }
}

/// Why a command cannot be sent to its agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The agent has not the capability AcceptsRestartCommand.
    NoRestart,
    /// The agent has not this custom capability.
    NoCustomCapability(String),
    /// The agent polls by plain HTTP: it has no connection to end.
    Polls,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRestart => f.write_str("the agent does not have the capability AcceptsRestartCommand"),
            Self::NoCustomCapability(name) => {
                write!(f, "the agent does not have the custom capability {name:?}")
            }
            Self::Polls => f.write_str("the agent polls by plain HTTP: it has no connection to end"),
        }
    }
}

/// Decides on a queued command. `agent` is what is known of its agent here, if anything.
pub fn decide<'a>(
    action: &Action,
    expires_at: Timestamp,
    agent: Option<&'a Agent>,
    now: Timestamp,
) -> Decision<'a> {
    let is_over = expires_at <= now;
    let wait = |waiting| if is_over { Decision::Expire(waiting) } else { Decision::Wait(waiting) };
    let Some((agent, session)) = agent.and_then(|agent| Some((agent, agent.live_session()?))) else {
        return wait(Waiting::Session);
    };
    if session.transport == Transport::Http && *action == Action::Disconnect {
        return Decision::Refuse(Refusal::Polls);
    }
    let state = &agent.state;
    if *action == Action::Restart && !state.capabilities.has(AgentCapabilities::ACCEPTS_RESTART_COMMAND) {
        return match state.capabilities == AgentCapabilities::default() {
            true => wait(Waiting::Report),
            false => Decision::Refuse(Refusal::NoRestart),
        };
    }
    if let Some(name) = action.custom_capability()
        && !state.custom_capabilities.iter().any(|known| known == name)
    {
        // A description is the mark of a full report, which names them.
        return match state.description.is_none() {
            true => wait(Waiting::Report),
            false => Decision::Refuse(Refusal::NoCustomCapability(name.to_owned())),
        };
    }
    if is_over { Decision::Expire(Waiting::Turn) } else { Decision::Send(session) }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
