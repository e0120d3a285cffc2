//! Selectors as conditions in SQL, that the index on what selectors see can answer.

use muster_domain::desired::NAME_LABEL;
use muster_domain::liveness::AgentFilter;
use muster_domain::report::Description;
use muster_domain::selector::{AgentSelector, Condition, MAX_VALUE, Requirement};
use serde_json::{Map, Value};
use sqlx::postgres::PgArguments;
use sqlx::{Arguments as _, Encode, Postgres, Type};
use uuid::Uuid;

/// What a selector sees of an agent `a`; the index is on exactly this.
const SEEN: &str = "(a.attributes || a.labels)";
/// As `muster_domain::liveness` tells it of the session of an agent `a`; NULL where it has none.
const LIVENESS: &str = "(SELECT CASE \
    WHEN s.ended_at IS NULL AND s.silent_since >= s.started_at THEN 'unreachable' \
    WHEN s.ended_at IS NULL THEN 'connected' \
    WHEN s.end_reason = 'agent_disconnect' THEN 'shut_down' \
    WHEN s.end_reason = 'silent' OR s.end_reason = 'connection_lost' AND s.end_detail IS NULL THEN 'unreachable' \
    ELSE 'disconnected' END \
    FROM sessions AS s WHERE s.tenant = a.tenant AND s.uid = a.uid AND s.cell = a.cell)";
/// Whether an agent `a` has drifted. The column has an index; the state tells by its beginning, also where a
/// version wrote it that does not know the column.
const DRIFTED: &str = "EXISTS (SELECT 1 FROM agent_states AS d WHERE d.tenant = a.tenant AND d.uid = a.uid \
    AND d.cell = a.cell AND d.drifted AND starts_with(d.state, '{\"drift\":{'))";
/// Stands for every value that no selector can name: they hold no control characters.
const UNNAMEABLE: &str = "\u{1}";

/// An agent's attributes as `muster_domain::desired::matches` compares them, but for those that no
/// selector can ask for.
pub(super) fn selectable(description: Option<&Description>) -> Map<String, Value> {
    let Some(description) = description else { return Map::new() };
    let all = description.non_identifying.iter().chain(&description.identifying);
    let askable = all.filter(|(key, _)| Requirement::new(key.as_str(), Condition::Exists).is_ok());
    askable.map(|(key, value)| (key.clone(), Value::String(text(value)))).collect()
}

fn text(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let is_nameable = text.len() <= MAX_VALUE && !text.contains(char::is_control);
    if is_nameable { text } else { UNNAMEABLE.to_owned() }
}

/// A condition in SQL with what is bound to it.
#[derive(Default)]
pub(super) struct Filter {
    pub(super) sql: String,
    pub(super) arguments: PgArguments,
}

impl Filter {
    /// Binds a value; returns the number to write in its place.
    pub(super) fn bind<'q, T>(&mut self, value: T) -> Result<String, sqlx::Error>
    where
        T: Encode<'q, Postgres> + Type<Postgres> + 'q,
    {
        self.arguments.add(value).map_err(sqlx::Error::Encode)?;
        Ok(format!("${}", self.arguments.len()))
    }

    /// Adds ` AND` the selector, for agents `a` of the tenant that `tenant` is the number of.
    pub(super) fn and(&mut self, selector: &AgentSelector, tenant: &str) -> Result<(), sqlx::Error> {
        let requirements = selector.requirements.requirements();
        let mut any = Vec::new();
        if !selector.agent_ids.is_empty() {
            // A list that is an array, not a join, can be looked up in an index beside other conditions.
            let uids: Vec<Uuid> = selector.agent_ids.iter().filter_map(|id| as_uid(id)).collect();
            let names: Vec<&str> = selector.agent_ids.iter().map(String::as_str).collect();
            let (uids, name, names) = (self.bind(uids)?, self.bind(NAME_LABEL)?, self.bind(names)?);
            any.push(format!("a.uid = ANY({uids})"));
            any.push(format!(
                "a.uid = ANY(ARRAY(SELECT l.uid FROM labels AS l \
                 WHERE l.tenant = {tenant} AND l.key = {name} AND l.value = ANY({names})))"
            ));
        }
        let all = requirements.iter().map(|requirement| self.requirement(requirement));
        let all = all.collect::<Result<Vec<_>, _>>()?.join(" AND ");
        if !all.is_empty() {
            any.push(format!("({all})"));
        }
        if !any.is_empty() {
            self.sql.push_str(&format!(" AND ({})", any.join(" OR ")));
        }
        Ok(())
    }

    /// Adds ` AND` the filter, for agents `a`.
    pub(super) fn and_also(&mut self, filter: &AgentFilter) -> Result<(), sqlx::Error> {
        if !filter.liveness.is_empty() {
            let names: Vec<&str> = filter.liveness.iter().map(|liveness| liveness.name()).collect();
            let names = self.bind(names)?;
            self.sql.push_str(&format!(" AND coalesce({LIVENESS}, 'disconnected') = ANY({names})"));
        }
        if let Some(drifted) = filter.drifted {
            let not = if drifted { "" } else { "NOT " };
            self.sql.push_str(&format!(" AND {not}{DRIFTED}"));
        }
        Ok(())
    }

    fn requirement(&mut self, requirement: &Requirement) -> Result<String, sqlx::Error> {
        let key = requirement.key();
        let with = |value: &String| {
            let pair = (key.to_owned(), Value::String(value.clone()));
            Value::Object([pair].into_iter().collect())
        };
        Ok(match requirement.condition() {
            Condition::In(values) if values.len() == 1 => {
                let pair = self.bind(values.first().map(with))?;
                format!("{SEEN} @> {pair}")
            }
            Condition::In(values) => {
                let pairs = self.bind(values.iter().map(with).collect::<Vec<_>>())?;
                format!("{SEEN} @> ANY({pairs})")
            }
            Condition::NotIn(values) => {
                let (key, values) = (self.bind(key)?, self.bind(values)?);
                format!("coalesce({SEEN} ->> {key} <> ALL({values}), true)")
            }
            Condition::Exists => format!("{SEEN} ->> {} IS NOT NULL", self.bind(key)?),
            Condition::DoesNotExist => format!("{SEEN} ->> {} IS NULL", self.bind(key)?),
        })
    }
}

/// The uid that an agent id is, written as agents are compared with.
fn as_uid(id: &str) -> Option<Uuid> {
    Uuid::try_parse(id).ok().filter(|uid| uid.to_string() == id)
}
