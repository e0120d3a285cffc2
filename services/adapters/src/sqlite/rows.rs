//! Rows to values and back.

use muster_domain::agent::{Agent, AgentState, EndReason, Session, Transport};
use muster_domain::ids::{AgentKey, Claim, Incarnation, InstanceUid, SessionId, Tenant, Timestamp};
use muster_ports::EngineError;
use muster_ports::store::StoredAgent;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Row as _, Sqlite, Type};

use super::error::{corrupt, failed};

/// Statement that reads whole agents, with `$from` saying which: tables `agents` as `a` and
/// `sessions` as `s`.
macro_rules! select_agents {
    ($from:literal) => {
        concat!(
            "SELECT a.tenant, a.uid, a.state, s.session_id, s.claim, s.gateway, s.incarnation, s.transport, \
             s.remote_addr, s.started_at, s.ended_at, s.end_reason, \
             (SELECT json_group_object(l.key, l.value) FROM labels l WHERE l.tenant = a.tenant AND l.uid = a.uid) \
             AS labels ",
            $from
        )
    };
}
pub(super) use select_agents;

/// The number with the same bits: SQLite has no unsigned ones. Only equality may be asked of it there,
/// unless it is known to be small.
pub(super) fn signed(number: u64) -> i64 {
    number.cast_signed()
}

/// What [`signed`] was made from.
pub(super) fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}

/// A limit as SQLite takes it.
pub(super) fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// A value as JSON text.
pub(super) fn to_json(place: &str, value: &impl Serialize) -> Result<String, EngineError> {
    serde_json::to_string(value).map_err(|error| corrupt(place, error))
}

/// A unit variant's name, as serde knows it.
fn name_of(value: &impl Serialize) -> Result<String, EngineError> {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => Ok(name),
        other => Err(corrupt("sessions", format_args!("{other:?} is not a name"))),
    }
}

/// A row, and the table and key that an error in it is told with.
pub(super) struct Reading<'a> {
    row: &'a SqliteRow,
    place: String,
}

impl<'a> Reading<'a> {
    pub(super) fn new(row: &'a SqliteRow, table: &str) -> Self {
        Self { row, place: table.to_owned() }
    }

    /// A column as it is.
    pub(super) fn get<T>(&self, column: &'static str) -> Result<T, EngineError>
    where
        T: Decode<'a, Sqlite> + Type<Sqlite>,
    {
        self.row.try_get(column).map_err(failed(&self.place))
    }

    /// A column of bits that are an unsigned number.
    pub(super) fn unsigned(&self, column: &'static str) -> Result<u64, EngineError> {
        self.get(column).map(unsigned)
    }

    /// A column of text that some type is parsed from.
    pub(super) fn parsed<T: TryFrom<String>>(&self, column: &'static str) -> Result<T, EngineError>
    where
        T::Error: std::fmt::Display,
    {
        T::try_from(self.get(column)?).map_err(|error| self.wrong(column, error))
    }

    /// A column of bytes that are some identifier.
    pub(super) fn id<T>(&self, column: &'static str) -> Result<T, EngineError>
    where
        T: for<'b> TryFrom<&'b [u8], Error: std::fmt::Display>,
    {
        T::try_from(self.get::<&[u8]>(column)?).map_err(|error| self.wrong(column, error))
    }

    /// A column of JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, EngineError> {
        serde_json::from_str(self.get(column)?).map_err(|error| self.wrong(column, error))
    }

    /// A column that holds the name of a unit variant.
    fn named<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, EngineError> {
        let name = Value::String(self.get(column)?);
        serde_json::from_value(name).map_err(|error| self.wrong(column, error))
    }

    fn wrong(&self, column: &str, reason: impl std::fmt::Display) -> EngineError {
        corrupt(format!("{}, {column}", self.place), reason)
    }
}

/// An agent from a row of [`select_agents`].
pub(super) fn stored_agent(row: &SqliteRow) -> Result<StoredAgent, EngineError> {
    let mut reading = Reading::new(row, "agents");
    let key =
        AgentKey { tenant: reading.parsed::<Tenant>("tenant")?, uid: reading.id::<InstanceUid>("uid")? };
    reading.place = format!("agents, {key}");
    let state: AgentState = reading.json("state")?;
    let labels = reading.json("labels")?;
    reading.place = format!("sessions, {key}");
    let session = session(&reading)?;
    Ok(StoredAgent { agent: Agent { key, session, state }, labels })
}

fn session(reading: &Reading<'_>) -> Result<Option<Session>, EngineError> {
    if reading.get::<Option<&[u8]>>("session_id")?.is_none() {
        return Ok(None);
    }
    let ended = match reading.get::<Option<i64>>("ended_at")? {
        Some(at) => Some((Timestamp(unsigned(at)), reading.named::<EndReason>("end_reason")?)),
        None => None,
    };
    Ok(Some(Session {
        id: reading.id::<SessionId>("session_id")?,
        claim: Claim(reading.unsigned("claim")?),
        gateway: reading.parsed("gateway")?,
        incarnation: reading.id::<Incarnation>("incarnation")?,
        transport: reading.named::<Transport>("transport")?,
        remote_addr: reading.get("remote_addr")?,
        started_at: Timestamp(reading.unsigned("started_at")?),
        ended,
    }))
}

/// Names of a session's variants, as columns hold them: transport and reason of the end.
pub(super) fn session_names(session: &Session) -> Result<(String, Option<String>), EngineError> {
    let reason = session.ended.map(|(_, reason)| name_of(&reason)).transpose()?;
    Ok((name_of(&session.transport)?, reason))
}
