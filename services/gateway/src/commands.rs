//! Commands of operators: from a delivery to the connection, and as messages to agents.

use bytes::Bytes;
use muster_domain::capabilities::ServerCapabilities;
use muster_domain::ids::{CommandId, InstanceUid, Tenant, Timestamp};
use muster_opamp::frame;
use muster_proto::bus::send_command::Action;
use muster_proto::bus::{AgentMessage, SendCommand};
use muster_proto::opamp::{CommandType, CustomMessage, ServerToAgent, ServerToAgentCommand};
use tracing::{info, warn};

use crate::Shared;
use crate::deliveries::session_of;
use crate::mailbox::Command;

/// Puts commands before the connections that carry their sessions. One that cannot be put is lost, as
/// it has left the queue; the others are put all the same.
///
/// # Errors
/// What is wrong with the last of those that are malformed.
pub(crate) fn deliver(shared: &Shared, tenant: &Tenant, commands: Vec<SendCommand>) -> Result<(), String> {
    let mut result = Ok(());
    for command in commands {
        if let Err(error) = put(shared, tenant, command) {
            result = Err(error);
        }
    }
    result
}

fn put(shared: &Shared, tenant: &Tenant, command: SendCommand) -> Result<(), String> {
    let target = command.session.unwrap_or_default();
    let (key, session) = session_of(tenant, &target.instance_uid, &target.session_id)?;
    let id = CommandId::try_from(command.id.as_ref()).map_err(|error| error.to_string())?;
    let action = command.action.ok_or("a command asks for something that this version does not know")?;
    let command = Command { session, id, expires_at: Timestamp(command.expires_at_us), action };
    let Some(mailbox) = shared.registry.find(&key, session) else {
        tell(shared, tenant, key.uid, &command, "session_gone");
        return Ok(());
    };
    if mailbox.put_command(key.uid, command.clone()).is_err() {
        tell(shared, tenant, key.uid, &command, "overflow");
    }
    Ok(())
}

/// Counts and logs what became of a command.
pub(crate) fn tell(shared: &Shared, tenant: &Tenant, uid: InstanceUid, command: &Command, result: &str) {
    let action = match &command.action {
        Action::Restart(_) => "restart",
        Action::Message(_) => "message",
        Action::ReportFullState(_) => "report",
        Action::Disconnect(_) => "disconnect",
    };
    shared.metrics.commands.with_label_values(&[action, result]).inc();
    let id = command.id;
    if result == "sent" {
        info!(event = "command_sent", %tenant, agent_id = %uid, command = %id, action, "sent a command to an agent");
    } else {
        warn!(event = "command_lost", %tenant, agent_id = %uid, command = %id, action, reason = result, "a command is not sent to its agent; it is not tried again");
    }
}

/// The restart command, alone in its message: an agent ignores what else is there (specification,
/// "ServerToAgentCommand Message").
pub(crate) fn restart(uid: InstanceUid) -> Bytes {
    frame::encode(&ServerToAgent {
        instance_uid: uid.as_bytes().to_vec(),
        capabilities: ServerCapabilities::PRESENT.0,
        command: Some(ServerToAgentCommand { r#type: CommandType::Restart.into() }),
        ..ServerToAgent::default()
    })
}

/// A custom message.
pub(crate) fn message(uid: InstanceUid, message: AgentMessage) -> Bytes {
    let AgentMessage { capability, r#type, data, .. } = message;
    frame::encode(&ServerToAgent {
        instance_uid: uid.as_bytes().to_vec(),
        custom_message: Some(CustomMessage { capability, r#type, data: data.into() }),
        ..ServerToAgent::default()
    })
}
