//! Floors in a bucket: control raises them there, gateways keep to them.
//!
//! The store has the floors; the bucket carries them to gateways also when the store is away. Each is a
//! value of its own, and only rises. The head is the sum of all: it is written after them, so that who
//! reads the head first and then finds a lower sum knows that something is missing. A bucket without a head
//! was lost, or never filled: it says nothing about floors.
//!
//! Beside them stand the revisions of intent that offers are decided on: a store that is older than its
//! bucket was restored from a backup.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_domain::ids::{Cell, IntentRevision, Tenant};

use crate::EngineError;
use crate::kv::{KeyValue, Precondition, PutError, Versioned};

/// Attempts at one value while others write it.
const ATTEMPTS: usize = 8;

/// The floors of a cell's tenants, by assignment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Floors {
    of: BTreeMap<Tenant, BTreeMap<String, IntentRevision>>,
}

impl Floors {
    /// The revision below which nothing that this assignment gave may be offered; zero without a floor.
    pub fn of(&self, tenant: &Tenant, assignment: &str) -> IntentRevision {
        let floors = self.of.get(tenant);
        floors.and_then(|floors| floors.get(assignment)).copied().unwrap_or_default()
    }

    /// Raises a tenant's floors to these, where they are lower.
    pub fn raise(&mut self, tenant: &Tenant, floors: &BTreeMap<String, IntentRevision>) {
        if floors.is_empty() {
            return;
        }
        let known = self.of.entry(tenant.clone()).or_default();
        for (assignment, floor) in floors {
            let known = known.entry(assignment.clone()).or_default();
            *known = (*known).max(*floor);
        }
    }

    /// Whether none of these floors is above the other ones.
    fn is_below(&self, other: &Self) -> bool {
        self.of.iter().all(|(tenant, floors)| {
            floors.iter().all(|(assignment, floor)| *floor <= other.of(tenant, assignment))
        })
    }

    /// The sum of all floors: of two states of one cluster, the later has the higher one.
    pub fn sum(&self) -> u64 {
        let floors = self.of.values().flat_map(BTreeMap::values);
        floors.fold(0, |sum, floor| sum.saturating_add(floor.0))
    }
}

fn revisions_prefix(cell: &Cell) -> String {
    format!("intent-revisions/{cell}/")
}

/// Keeps in mind that offers are decided on this revision of a tenant's intent. The store may be restored
/// from a backup: then the bucket knows which revisions were used since.
///
/// # Errors
/// If the engine did not do it; the same call may be made again.
pub async fn raise_revision(
    bucket: &dyn KeyValue,
    cell: &Cell,
    tenant: &Tenant,
    revision: IntentRevision,
) -> Result<(), EngineError> {
    raise_value(bucket, &format!("{}{tenant}", revisions_prefix(cell)), revision.0).await
}

/// The highest revision of each tenant's intent that was kept in mind.
///
/// # Errors
/// If the engine does not say, or holds something else.
pub async fn revisions(
    bucket: &dyn KeyValue,
    cell: &Cell,
) -> Result<BTreeMap<Tenant, IntentRevision>, EngineError> {
    let prefix = revisions_prefix(cell);
    let mut revisions = BTreeMap::new();
    for (key, value) in bucket.list(&prefix).await? {
        let tenant = key.strip_prefix(&prefix).and_then(|tenant| tenant.parse().ok());
        let Some(tenant) = tenant else { return Err(corrupt(&key, "the key names no tenant")) };
        revisions.insert(tenant, IntentRevision(number(&key, &value)?));
    }
    Ok(revisions)
}

fn head_key(cell: &Cell) -> String {
    format!("floors-head/{cell}")
}

fn prefix(cell: &Cell) -> String {
    format!("floors/{cell}/")
}

/// The sum of the floors in the bucket; `None` if they are not loaded.
///
/// # Errors
/// If the engine does not say, or the value is not a number.
pub async fn head(bucket: &dyn KeyValue, cell: &Cell) -> Result<Option<u64>, EngineError> {
    let key = head_key(cell);
    bucket.get(&key).await?.map(|head| number(&key, &head)).transpose()
}

/// The floors in the bucket; `None` if they are not loaded.
///
/// # Errors
/// If the engine does not say, holds something else, or does not hold all that its head counts.
pub async fn load(bucket: &dyn KeyValue, cell: &Cell) -> Result<Option<Floors>, EngineError> {
    let Some(head) = head(bucket, cell).await? else { return Ok(None) };
    let floors = list(bucket, cell).await?;
    if floors.sum() < head {
        return Err(EngineError::Unavailable {
            engine: "floors bucket",
            reason: format!("its floors sum up to {}, and should to {head}", floors.sum()),
        });
    }
    Ok(Some(floors))
}

async fn list(bucket: &dyn KeyValue, cell: &Cell) -> Result<Floors, EngineError> {
    let prefix = prefix(cell);
    let mut floors = Floors::default();
    for (key, value) in bucket.list(&prefix).await? {
        let named = key.strip_prefix(&prefix).and_then(|rest| rest.split_once('/'));
        let named = named.and_then(|(tenant, assignment)| Some((tenant.parse().ok()?, assignment)));
        let Some((tenant, assignment)) = named else {
            return Err(corrupt(&key, "the key names no tenant and assignment"));
        };
        let floor = IntentRevision(number(&key, &value)?);
        floors.raise(&tenant, &BTreeMap::from([(assignment.to_owned(), floor)]));
    }
    Ok(floors)
}

/// Raises the bucket's floors to these where they are lower. `known` is what the caller knows to be there,
/// and is brought up to date. Returns whether anything was written. Any number of callers may do this at
/// once.
///
/// # Errors
/// If the engine did not do all of it; what it did is no harm, and the same call may be made again.
pub async fn raise(
    bucket: &dyn KeyValue,
    cell: &Cell,
    floors: &Floors,
    known: &mut Floors,
) -> Result<bool, EngineError> {
    let found = head(bucket, cell).await?;
    if found.is_some_and(|found| found >= known.sum()) && floors.is_below(known) {
        return Ok(false);
    }
    let mut there = list(bucket, cell).await?;
    for (tenant, floors) in &floors.of {
        for (assignment, floor) in floors {
            if there.of(tenant, assignment) < *floor {
                let key = format!("{}{tenant}/{assignment}", prefix(cell));
                raise_value(bucket, &key, floor.0).await?;
            }
        }
        there.raise(tenant, floors);
    }
    raise_value(bucket, &head_key(cell), there.sum()).await?;
    *known = there;
    Ok(true)
}

async fn raise_value(bucket: &dyn KeyValue, key: &str, wanted: u64) -> Result<(), EngineError> {
    for _ in 0..ATTEMPTS {
        let precondition = match bucket.get(key).await? {
            Some(found) if number(key, &found)? >= wanted => return Ok(()),
            Some(found) => Precondition::Version(found.version),
            None => Precondition::Absent,
        };
        match bucket.put(key, Bytes::from(wanted.to_string()), precondition).await {
            Ok(_) => return Ok(()),
            Err(PutError::Conflict) => {}
            Err(PutError::Engine(error)) => return Err(error),
        }
    }
    Err(EngineError::Unavailable {
        engine: "floors bucket",
        reason: format!("{key} was changed by others {ATTEMPTS} times in a row"),
    })
}

fn number(key: &str, value: &Versioned) -> Result<u64, EngineError> {
    let text = std::str::from_utf8(&value.value).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| corrupt(key, "the value is not a number"))
}

fn corrupt(key: &str, reason: &str) -> EngineError {
    EngineError::Corrupt { engine: "floors bucket", place: key.to_owned(), reason: reason.to_owned() }
}
