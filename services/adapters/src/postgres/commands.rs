//! Commands to agents.

use std::collections::BTreeSet;

use async_trait::async_trait;
use muster_domain::audit::Entry;
use muster_domain::command::{Action, Command, CommandState, Status};
use muster_domain::ids::{AgentKey, CommandId, InstanceUid, Tenant, Timestamp};
use muster_domain::report::CustomMessage;
use muster_ports::EngineError;
use muster_ports::store::{CommandStore, CommitError, QueueError, QueuedCommand, SettledCommand};
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, query};
use uuid::Uuid;

use super::audit::append;
use super::error::{corrupt, failed, refused};
use super::rows::{Reading, limit, signed};
use super::{PostgresStore, call};

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
impl CommandStore for PostgresStore {
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
        call!(self, |connection| insert(connection, tenant, commands, most, audit))
    }

    async fn commands(&self, tenant: &Tenant, ids: &[CommandId]) -> Result<Vec<Command>, EngineError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let found =
            query(select_commands!("commands AS c WHERE c.id = ANY($1) AND c.tenant = $2 ORDER BY c.id"))
                .bind(ids)
                .bind(tenant.as_str());
        call!(self, |connection| async { commands(found.fetch_all(connection).await) })
    }

    async fn latest_commands(&self, key: &AgentKey, rows: usize) -> Result<Vec<Command>, EngineError> {
        let found = query(select_commands!(
            "commands AS c WHERE c.tenant = $1 AND c.uid = $2 ORDER BY c.id DESC LIMIT $3"
        ))
        .bind(key.tenant.as_str())
        .bind(key.uid.0)
        .bind(limit(rows));
        call!(self, |connection| async { commands(found.fetch_all(connection).await) })
    }

    async fn queued(&self, rows: usize) -> Result<Vec<QueuedCommand>, EngineError> {
        let found = query(
            "SELECT id, tenant, uid, expires_at FROM commands WHERE status = 'queued' ORDER BY id LIMIT $1",
        )
        .bind(limit(rows));
        let found = call!(self, |connection| async {
            found.fetch_all(connection).await.map_err(failed("commands"))
        })?;
        let header = |row: &PgRow| {
            let reading = Reading::new(row, "commands");
            Ok(QueuedCommand {
                id: CommandId(reading.get("id")?),
                key: key(&reading)?,
                expires_at: Timestamp(reading.unsigned("expires_at")?),
            })
        };
        found.iter().map(header).collect()
    }

    async fn forget_settled(&self, before: Timestamp, rows: usize) -> Result<usize, EngineError> {
        let gone = query(
            "DELETE FROM commands WHERE id = ANY(ARRAY(SELECT id FROM commands WHERE settled_at < $1 LIMIT $2 \
             FOR UPDATE SKIP LOCKED))",
        )
        .bind(signed(before.0))
        .bind(limit(rows));
        let gone =
            call!(self, |connection| async { gone.execute(connection).await.map_err(failed("commands")) })?;
        Ok(usize::try_from(gone.rows_affected()).unwrap_or(usize::MAX))
    }
}

/// Columns of new commands.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    uids: Vec<Uuid>,
    actions: Vec<&'a str>,
    capabilities: Vec<Option<&'a str>>,
    types: Vec<Option<&'a str>>,
    data: Vec<Option<&'a [u8]>>,
    created_at: Vec<i64>,
    expires_at: Vec<i64>,
    actors: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, command: &'a Command) {
        let message = match &command.action {
            Action::Message(message) => Some(message),
            _ => None,
        };
        self.ids.push(command.id.0);
        self.uids.push(command.key.uid.0);
        self.actions.push(command.action.name());
        self.capabilities.push(message.map(|message| message.capability.as_str()));
        self.types.push(message.map(|message| message.kind.as_str()));
        self.data.push(message.map(|message| message.data.as_slice()));
        self.created_at.push(signed(command.created_at.0));
        self.expires_at.push(signed(command.expires_at.0));
        self.actors.push(&command.actor);
    }
}

async fn insert(
    connection: &mut PgConnection,
    tenant: &Tenant,
    commands: &[Command],
    most: usize,
    audit: Option<&Entry>,
) -> Result<(), QueueError> {
    let mut transaction = connection.begin().await.map_err(failed("a new transaction"))?;
    let row = query("SELECT count(*) AS queued FROM commands WHERE status = 'queued' AND tenant = $1")
        .bind(tenant.as_str())
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed("commands"))?;
    let queued = usize::try_from(Reading::new(&row, "commands").unsigned("queued")?).unwrap_or(usize::MAX);
    let mut columns = Columns::default();
    commands.iter().for_each(|command| columns.push(command));
    let done = query(
        "INSERT INTO commands (tenant, status, reason, id, uid, action, capability, type, data, created_at, \
         expires_at, actor) SELECT $1, 'queued', '', r.* FROM unnest($2::uuid[], $3::uuid[], $4::text[], \
         $5::text[], $6::text[], $7::bytea[], $8::int8[], $9::int8[], $10::text[]) AS r ON CONFLICT DO NOTHING",
    )
    .bind(tenant.as_str())
    .bind(columns.ids)
    .bind(columns.uids)
    .bind(columns.actions)
    .bind(columns.capabilities)
    .bind(columns.types)
    .bind(columns.data)
    .bind(columns.created_at)
    .bind(columns.expires_at)
    .bind(columns.actors)
    .execute(&mut *transaction)
    .await
    .map_err(failed("commands"))?;
    let new = usize::try_from(done.rows_affected()).unwrap_or(usize::MAX);
    if new > 0 && queued.saturating_add(new) > most {
        return Err(QueueError::Full { queued });
    }
    if new > 0 {
        append(&mut transaction, tenant, audit).await?;
    }
    transaction.commit().await.map_err(failed("commands"))?;
    Ok(())
}

/// Settles commands that are still queued, within a commit.
pub(super) async fn settle(
    connection: &mut PgConnection,
    commands: &[SettledCommand],
) -> Result<(), CommitError> {
    if commands.is_empty() {
        return Ok(());
    }
    // In one order everywhere, so that no two commits wait for each other.
    let mut commands: Vec<_> = commands.iter().collect();
    commands.sort_by_key(|settled| settled.id);
    let column =
        |text: fn(&SettledCommand) -> &str| commands.iter().map(|settled| text(settled)).collect::<Vec<_>>();
    let done = query(
        "WITH r AS MATERIALIZED (SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int8[]) \
         AS r (id, tenant, status, reason, settled_at)), \
         locked AS MATERIALIZED (SELECT c.id FROM commands AS c JOIN r ON c.id = r.id AND c.tenant = r.tenant \
         WHERE c.status = 'queued' ORDER BY c.id FOR UPDATE OF c) \
         UPDATE commands AS c SET status = r.status, reason = r.reason, settled_at = r.settled_at \
         FROM r JOIN locked ON locked.id = r.id WHERE c.id = r.id AND c.status = 'queued' RETURNING c.id",
    )
    .bind(commands.iter().map(|settled| settled.id.0).collect::<Vec<_>>())
    .bind(column(|settled| settled.tenant.as_str()))
    .bind(column(|settled| settled.state.status.name()))
    .bind(column(|settled| &settled.state.reason))
    .bind(commands.iter().map(|settled| settled.state.settled_at.map(|at| signed(at.0))).collect::<Vec<_>>())
    .fetch_all(connection)
    .await
    .map_err(refused("commands"))?;
    let done: Result<BTreeSet<Uuid>, _> =
        done.iter().map(|row| Reading::new(row, "commands").get("id")).collect();
    let done = done?;
    match commands.iter().find(|settled| !done.contains(&settled.id.0)) {
        Some(moved) => Err(CommitError::CommandMoved(moved.id)),
        None => Ok(()),
    }
}

fn commands(found: Result<Vec<PgRow>, sqlx::Error>) -> Result<Vec<Command>, EngineError> {
    found.map_err(failed("commands"))?.iter().map(command).collect()
}

fn key(reading: &Reading<'_>) -> Result<AgentKey, EngineError> {
    Ok(AgentKey { tenant: reading.parsed("tenant")?, uid: InstanceUid(reading.get("uid")?) })
}

fn command(row: &PgRow) -> Result<Command, EngineError> {
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
        id: CommandId(reading.get("id")?),
        key: key(&reading)?,
        action: Action::named(&action, message).ok_or_else(|| unknown("action", &action))?,
        created_at: Timestamp(reading.unsigned("created_at")?),
        expires_at: Timestamp(reading.unsigned("expires_at")?),
        actor: reading.get("actor")?,
        state: CommandState {
            status: Status::named(&status).ok_or_else(|| unknown("status", &status))?,
            reason: reading.get("reason")?,
            settled_at: reading.get::<Option<i64>>("settled_at")?.map(|at| Timestamp(at.cast_unsigned())),
        },
    })
}
