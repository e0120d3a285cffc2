//! Rows to values and back.

use muster_domain::agent::{Agent, AgentState, EndReason, Session, Transport};
use muster_domain::ids::{AgentKey, Claim, Incarnation, InstanceUid, SessionId, Tenant, Timestamp};
use muster_ports::EngineError;
use muster_ports::store::StoredAgent;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{Decode, Postgres, Row as _, Type};
use uuid::Uuid;

use super::error::{corrupt, failed};

/// Statement that reads whole agents: `agents` as `a`, with the columns of its key and `labels`, from
/// `$from`.
macro_rules! select_agents {
    ($from:literal, $rest:literal) => {
        select_agents!("", $from, $rest)
    };
    ($more:literal, $from:literal, $rest:literal) => {
        concat!(
            "SELECT a.tenant, a.uid, st.state, s.session_id, s.claim, s.gateway, s.incarnation, s.transport, \
             s.remote_addr, s.started_at, s.ended_at, s.end_reason, a.labels::text AS labels",
            $more,
            " FROM ",
            $from,
            " JOIN agent_states AS st ON st.tenant = a.tenant AND st.uid = a.uid AND st.cell = a.cell \
             LEFT JOIN sessions AS s ON s.tenant = a.tenant AND s.uid = a.uid AND s.cell = a.cell ",
            $rest
        )
    };
}
pub(super) use select_agents;

/// The number with the same bits: Postgres has no unsigned ones. Only equality may be asked of it there,
/// unless it is known to be small.
pub(super) fn signed(number: u64) -> i64 {
    number.cast_signed()
}

/// What [`signed`] was made from.
fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}

/// A limit as Postgres takes it.
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
    row: &'a PgRow,
    place: String,
}

impl<'a> Reading<'a> {
    pub(super) fn new(row: &'a PgRow, table: &str) -> Self {
        Self { row, place: table.to_owned() }
    }

    /// A column as it is.
    pub(super) fn get<T>(&self, column: &'static str) -> Result<T, EngineError>
    where
        T: Decode<'a, Postgres> + Type<Postgres>,
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

    /// A column of JSON text.
    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, EngineError> {
        serde_json::from_str(self.get(column)?).map_err(|error| self.wrong(column, error))
    }

    /// A column that holds the name of a unit variant.
    fn named<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, EngineError> {
        let name = Value::String(self.get(column)?);
        serde_json::from_value(name).map_err(|error| self.wrong(column, error))
    }

    /// What is in this column cannot be understood.
    pub(super) fn wrong(&self, column: &str, reason: impl std::fmt::Display) -> EngineError {
        corrupt(format!("{}, {column}", self.place), reason)
    }
}

/// Agents from rows of [`select_agents`].
pub(super) fn stored_agents(found: Result<Vec<PgRow>, sqlx::Error>) -> Result<Vec<StoredAgent>, EngineError> {
    found.map_err(failed("agents"))?.iter().map(stored_agent).collect()
}

/// An agent from a row of [`select_agents`].
pub(super) fn stored_agent(row: &PgRow) -> Result<StoredAgent, EngineError> {
    let mut reading = Reading::new(row, "agents");
    let key = AgentKey { tenant: reading.parsed::<Tenant>("tenant")?, uid: InstanceUid(reading.get("uid")?) };
    reading.place = format!("agents, {key}");
    let state: AgentState = reading.json("state")?;
    let labels = reading.json("labels")?;
    reading.place = format!("sessions, {key}");
    let session = session(&reading)?;
    Ok(StoredAgent { agent: Agent { key, session, state }, labels })
}

fn session(reading: &Reading<'_>) -> Result<Option<Session>, EngineError> {
    let Some(id) = reading.get::<Option<Uuid>>("session_id")? else { return Ok(None) };
    let ended = match reading.get::<Option<i64>>("ended_at")? {
        Some(at) => Some((Timestamp(unsigned(at)), reading.named::<EndReason>("end_reason")?)),
        None => None,
    };
    Ok(Some(Session {
        id: SessionId(id),
        claim: Claim(reading.unsigned("claim")?),
        gateway: reading.parsed("gateway")?,
        incarnation: Incarnation(reading.get("incarnation")?),
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
