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
             s.remote_addr, s.started_at, s.ended_at, s.end_reason, s.end_detail, s.silent_since, a.labels::text AS labels",
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
        Some(at) => Some((Timestamp(unsigned(at)), end_reason(reading)?)),
        None => None,
    };
    let started_at = Timestamp(reading.unsigned("started_at")?);
    let silent_since = reading.get::<Option<i64>>("silent_since")?.map(|at| Timestamp(unsigned(at)));
    Ok(Some(Session {
        id: SessionId(id),
        claim: Claim(reading.unsigned("claim")?),
        gateway: reading.parsed("gateway")?,
        incarnation: Incarnation(reading.get("incarnation")?),
        transport: reading.named::<Transport>("transport")?,
        remote_addr: reading.get("remote_addr")?,
        started_at,
        ended,
        // A version that does not know the column leaves that of another session there.
        silent_since: silent_since.filter(|silent| ended.is_none() && *silent >= started_at),
    }))
}

/// Why a session ended. A later version may know of more reasons than this one.
fn end_reason(reading: &Reading<'_>) -> Result<EndReason, EngineError> {
    let known = reading.named("end_reason").unwrap_or(EndReason::ConnectionLost);
    let Some(detail) = reading.get::<Option<String>>("end_detail")? else { return Ok(known) };
    let detail: Option<EndReason> = serde_json::from_value(Value::String(detail)).ok();
    Ok(detail.filter(|detail| detail.known_to_all() == known).unwrap_or(known))
}

/// Names of a session's variants, as columns hold them.
pub(super) struct SessionNames {
    pub(super) transport: String,
    /// Why it ended, as every version of the program knows it.
    pub(super) end_reason: Option<String>,
    /// Why it ended, if that does not tell.
    pub(super) end_detail: Option<String>,
}

impl SessionNames {
    pub(super) fn of(session: &Session) -> Result<Self, EngineError> {
        let reason = session.ended.map(|(_, reason)| reason);
        let detail = reason.filter(|reason| *reason != reason.known_to_all());
        Ok(Self {
            transport: name_of(&session.transport)?,
            end_reason: reason.map(|reason| name_of(&reason.known_to_all())).transpose()?,
            end_detail: detail.map(|detail| name_of(&detail)).transpose()?,
        })
    }
}
