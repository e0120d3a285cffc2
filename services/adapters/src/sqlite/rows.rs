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
             s.remote_addr, s.started_at, s.ended_at, s.end_reason, s.end_detail, s.silent_since, \
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
        Some(at) => Some((Timestamp(unsigned(at)), end_reason(reading)?)),
        None => None,
    };
    let started_at = Timestamp(reading.unsigned("started_at")?);
    let silent_since = reading.get::<Option<i64>>("silent_since")?.map(|at| Timestamp(unsigned(at)));
    Ok(Some(Session {
        id: reading.id::<SessionId>("session_id")?,
        claim: Claim(reading.unsigned("claim")?),
        gateway: reading.parsed("gateway")?,
        incarnation: reading.id::<Incarnation>("incarnation")?,
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
