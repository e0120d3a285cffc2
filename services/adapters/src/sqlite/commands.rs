//! Commands to agents.

use async_trait::async_trait;
use muster_domain::audit::Entry;
use muster_domain::command::{Action, Command, CommandState, Status};
use muster_domain::ids::{AgentKey, CommandId, InstanceUid, Tenant, Timestamp};
use muster_domain::report::CustomMessage;
use muster_ports::EngineError;
use muster_ports::store::{CommandStore, CommitError, QueueError, QueuedCommand, SettledCommand};
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, query};

use super::SqliteStore;
use super::audit::append;
use super::error::{corrupt, failed};
use super::rows::{Reading, limit, signed, to_json, unsigned};

/// Columns of a whole command.
macro_rules! select_commands {
    ($from:literal) => {
        concat!(
            "SELECT c.id, c.tenant, c.uid, c.action, c.capability, c.type, c.data, c.created_at, c.expires_at, \
             c.actor, c.status, c.reason, c.settled_at FROM ",
            $from
        )
    };
}

#[async_trait]
impl CommandStore for SqliteStore {
    async fn queue(
        &self,
        tenant: &Tenant,
        commands: &[Command],
        most: usize,
        audit: Option<&Entry>,
    ) -> Result<(), QueueError> {
        if commands.is_empty() {
            return Ok(());
        }
        let mut transaction = self.begin_write().await?;
        let row = query("SELECT count(*) AS queued FROM commands WHERE status = 'queued' AND tenant = $1")
            .bind(tenant.as_str())
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed("commands"))?;
        let queued = Reading::new(&row, "commands").unsigned("queued")?;
        let queued = usize::try_from(queued).unwrap_or(usize::MAX);
        let mut new = 0;
        for command in commands {
            new += insert(&mut transaction, tenant, command).await?;
        }
        if new > 0 && queued.saturating_add(new) > most {
            return Err(QueueError::Full { queued });
        }
        if new > 0 {
            append(&mut transaction, tenant, audit).await?;
        }
        transaction.commit().await.map_err(failed("commands"))?;
        Ok(())
    }

    async fn commands(&self, tenant: &Tenant, ids: &[CommandId]) -> Result<Vec<Command>, EngineError> {
        let found = query(select_commands!(
            "commands AS c WHERE c.id IN (SELECT unhex(value, '-') FROM json_each($1)) AND c.tenant = $2 \
             ORDER BY c.id"
        ))
        .bind(to_json("commands", &ids)?)
        .bind(tenant.as_str())
        .fetch_all(&mut *self.reader().await?)
        .await;
        found.map_err(failed("commands"))?.iter().map(command).collect()
    }

    async fn latest_commands(&self, key: &AgentKey, rows: usize) -> Result<Vec<Command>, EngineError> {
        let found = query(select_commands!(
            "commands AS c WHERE c.tenant = $1 AND c.uid = $2 ORDER BY c.id DESC LIMIT $3"
        ))
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .bind(limit(rows))
        .fetch_all(&mut *self.reader().await?)
        .await;
        found.map_err(failed("commands"))?.iter().map(command).collect()
    }

    async fn queued(&self, rows: usize) -> Result<Vec<QueuedCommand>, EngineError> {
        let found = query(
            "SELECT id, tenant, uid, expires_at FROM commands WHERE status = 'queued' ORDER BY id LIMIT $1",
        )
        .bind(limit(rows))
        .fetch_all(&mut *self.reader().await?)
        .await;
        let header = |row: &SqliteRow| {
            let reading = Reading::new(row, "commands");
            Ok(QueuedCommand {
                id: reading.id("id")?,
                key: AgentKey { tenant: reading.parsed("tenant")?, uid: reading.id("uid")? },
                expires_at: Timestamp(reading.unsigned("expires_at")?),
            })
        };
        found.map_err(failed("commands"))?.iter().map(header).collect()
    }

    async fn forget_settled(&self, before: Timestamp, rows: usize) -> Result<usize, EngineError> {
        let mut transaction = self.begin_write().await?;
        let gone = query(
            "DELETE FROM commands WHERE id IN (SELECT id FROM commands WHERE settled_at < $1 LIMIT $2)",
        )
        .bind(signed(before.0))
        .bind(limit(rows))
        .execute(&mut *transaction)
        .await
        .map_err(failed("commands"))?;
        transaction.commit().await.map_err(failed("commands"))?;
        Ok(usize::try_from(gone.rows_affected()).unwrap_or(usize::MAX))
    }
}

/// Queues a command. Returns how many are new, one or none.
async fn insert(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command: &Command,
) -> Result<usize, EngineError> {
    let message = match &command.action {
        Action::Message(message) => Some(message),
        _ => None,
    };
    let done = query(
        "INSERT INTO commands (id, tenant, uid, action, capability, type, data, created_at, expires_at, actor, \
         status, reason, settled_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'queued', '', NULL) \
         ON CONFLICT DO NOTHING",
    )
    .bind(command.id.0)
    .bind(tenant.as_str())
    .bind(command.key.uid.0)
    .bind(command.action.name())
    .bind(message.map(|message| message.capability.as_str()))
    .bind(message.map(|message| message.kind.as_str()))
    .bind(message.map(|message| message.data.as_slice()))
    .bind(signed(command.created_at.0))
    .bind(signed(command.expires_at.0))
    .bind(&command.actor)
    .execute(connection)
    .await
    .map_err(failed("commands"))?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}

/// Settles commands that are still queued, within a commit.
pub(super) async fn settle(
    connection: &mut SqliteConnection,
    commands: &[SettledCommand],
) -> Result<(), CommitError> {
    for settled in commands {
        let state = &settled.state;
        let done = query(
            "UPDATE commands SET status = $1, reason = $2, settled_at = $3 \
             WHERE id = $4 AND tenant = $5 AND status = 'queued'",
        )
        .bind(state.status.name())
        .bind(&state.reason)
        .bind(state.settled_at.map(|at| signed(at.0)))
        .bind(settled.id.0)
        .bind(settled.tenant.as_str())
        .execute(&mut *connection)
        .await
        .map_err(failed("commands"))?;
        if done.rows_affected() == 0 {
            return Err(CommitError::CommandMoved(settled.id));
        }
    }
    Ok(())
}

fn command(row: &SqliteRow) -> Result<Command, EngineError> {
    let reading = Reading::new(row, "commands");
    let message = match reading.get::<Option<String>>("capability")? {
        Some(capability) => {
            Some(CustomMessage { capability, kind: reading.get("type")?, data: reading.get("data")? })
        }
        None => None,
    };
    let (action, status): (String, String) = (reading.get("action")?, reading.get("status")?);
    let unknown = |what: &str, name: &str| {
        corrupt("commands", format_args!("{name:?} is no {what} that this version knows"))
    };
    Ok(Command {
        id: reading.id::<CommandId>("id")?,
        key: AgentKey { tenant: reading.parsed("tenant")?, uid: reading.id::<InstanceUid>("uid")? },
        action: Action::named(&action, message).ok_or_else(|| unknown("action", &action))?,
        created_at: Timestamp(reading.unsigned("created_at")?),
        expires_at: Timestamp(reading.unsigned("expires_at")?),
        actor: reading.get("actor")?,
        state: CommandState {
            status: Status::named(&status).ok_or_else(|| unknown("status", &status))?,
            reason: reading.get("reason")?,
            settled_at: reading.get::<Option<i64>>("settled_at")?.map(|at| Timestamp(unsigned(at))),
        },
    })
}
