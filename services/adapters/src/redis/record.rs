//! What Redis answered, as the port has it.

use std::fmt::Display;
use std::str::FromStr;

use muster_domain::ids::{AgentKey, Claim, Timestamp};
use muster_ports::EngineError;
use muster_ports::ownership::{ClaimOutcome, Holder, Owned};
use redis::{RedisError, Value};

use super::{ENGINE, scripts};

/// The answer to one command, or what the server has against its key.
pub(super) type Answer = Result<Value, RedisError>;

/// The answer to a claim.
pub(super) fn claimed(key: &AgentKey, answer: Answer) -> Result<ClaimOutcome, EngineError> {
    let row = Row::new(key, answer)?;
    let claim = |field| row.number(field, "claim").map(Claim);
    match row.text(0) {
        Some("granted") => Ok(ClaimOutcome::Granted { claim: claim(1)? }),
        Some("resumed") => Ok(ClaimOutcome::Resumed {
            claim: claim(1)?,
            previous: row.field(2, "session")?,
            settled: row.optional(3, "settled")?,
        }),
        Some("contested") => Ok(ClaimOutcome::Contested { holder: row.holder(1)? }),
        _ => Err(row.unexpected()),
    }
}

/// The answer to settling and releasing: whether the session held the agent.
pub(super) fn was_holder(key: &AgentKey, answer: Answer) -> Result<bool, EngineError> {
    let row = Row::new(key, answer)?;
    match row.text(0) {
        Some("holder") => Ok(true),
        Some("other") => Ok(false),
        _ => Err(row.unexpected()),
    }
}

/// The answer to [`scripts::look_up`].
pub(super) fn owned(key: &AgentKey, answer: Answer) -> Result<Option<Owned>, EngineError> {
    let row = Row::new(key, answer)?;
    if row.values.iter().all(|value| *value == Value::Nil) {
        return Ok(None);
    }
    // After a release there is no gateway.
    let holder = row.text(2).is_some().then(|| row.holder(0)).transpose()?;
    let settled = row.optional(4, "settled")?;
    let seen = Timestamp(row.number(5, "seen")?);
    Ok(Some(Owned { holder, settled, seen }))
}

/// A list that was answered for a key.
pub(super) struct Row<'a> {
    key: &'a AgentKey,
    values: Vec<Value>,
}

impl<'a> Row<'a> {
    pub(super) fn new(key: &'a AgentKey, answer: Answer) -> Result<Self, EngineError> {
        match answer {
            Ok(Value::Array(values)) => Ok(Self { key, values }),
            Ok(other) => Err(corrupt(key, format_args!("answered with {other:?}"))),
            Err(error) => Err(corrupt(key, error)),
        }
    }

    pub(super) fn text(&self, index: usize) -> Option<&str> {
        match self.values.get(index)? {
            Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
            Value::SimpleString(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn field<T: FromStr<Err: Display>>(&self, index: usize, name: &str) -> Result<T, EngineError> {
        let text = self.text(index).ok_or_else(|| corrupt(self.key, format_args!("has no {name}")))?;
        text.parse().map_err(|error| corrupt(self.key, format_args!("{name} {text:?}: {error}")))
    }

    pub(super) fn number(&self, index: usize, name: &str) -> Result<u64, EngineError> {
        self.field(index, name)
    }

    fn optional(&self, index: usize, name: &str) -> Result<Option<u64>, EngineError> {
        match self.values.get(index) {
            None | Some(Value::Nil) => Ok(None),
            Some(_) => self.number(index, name).map(Some),
        }
    }

    /// A field of which an empty text says that there is none.
    pub(super) fn maybe<T: FromStr<Err: Display>>(
        &self,
        index: usize,
        name: &str,
    ) -> Result<Option<T>, EngineError> {
        match self.text(index) {
            Some("") => Ok(None),
            _ => self.field(index, name).map(Some),
        }
    }

    /// A field that is `1`, or else an empty text.
    pub(super) fn flag(&self, index: usize) -> bool {
        self.text(index) == Some("1")
    }

    /// Session, claim, gateway and incarnation from this index on.
    pub(super) fn holder(&self, index: usize) -> Result<Holder, EngineError> {
        Ok(Holder {
            session: self.field(index, "session")?,
            claim: Claim(self.number(index + 1, "claim")?),
            gateway: self.field(index + 2, "gateway")?,
            incarnation: self.field(index + 3, "incarnation")?,
        })
    }

    /// An answer that is none of those expected: a script names the field that it cannot use.
    pub(super) fn unexpected(&self) -> EngineError {
        match (self.text(0), self.text(1)) {
            (Some("corrupt"), Some(name)) => corrupt(self.key, format_args!("unusable {name}")),
            _ => corrupt(self.key, format_args!("answered with {:?}", self.values)),
        }
    }
}

fn corrupt(key: &AgentKey, reason: impl Display) -> EngineError {
    EngineError::Corrupt { engine: ENGINE, place: scripts::name(key), reason: reason.to_string() }
}
