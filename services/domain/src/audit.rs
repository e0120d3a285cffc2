//! The audit log: who changed what, from where, and what came of it; chained so that a gap shows.
//!
//! The records of a tenant are numbered from 1 and each carries the digest of the one before. A record that
//! is changed, left out or put in breaks the chain from there on; the head, kept apart, shows when the last
//! ones are missing. The digest is over a canonical form that never changes.

use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::ids::{Digest, Tenant, Timestamp};

/// Longest name, address or target in a record, in bytes.
pub const MAX_TEXT: usize = 512;
/// Longest state before or after, in bytes of JSON; of a longer one only the digest is kept.
pub const MAX_STATE: usize = 16 << 10;

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done, in the same transaction.
    Done,
    /// Who asked may not do it.
    Denied,
}

impl Outcome {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Denied => "denied",
        }
    }

    /// The outcome with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Done, Self::Denied].into_iter().find(|outcome| outcome.name() == name)
    }
}

/// What is written of one operation. No secret stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// With which role.
    pub role: Role,
    /// From which address; empty where that is not known.
    pub remote: String,
    /// The operation, as the table of operations names it.
    pub operation: String,
    /// What it was done to, such as `agents/UID`.
    pub target: String,
    /// What was there before, as JSON; empty for nothing.
    pub before: String,
    /// What is there now, as JSON; empty for nothing.
    pub after: String,
    /// What became of it.
    pub outcome: Outcome,
}

impl Entry {
    /// The entry with this before and after; a state that is too long is replaced by its digest.
    #[must_use]
    pub fn with_states(self, before: String, after: String) -> Self {
        Self { before: bounded(before), after: bounded(after), ..self }
    }

    /// The entry with its texts cut to what a record may hold.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            actor: cut(self.actor),
            remote: cut(self.remote),
            operation: cut(self.operation),
            target: cut(self.target),
            before: bounded(self.before),
            after: bounded(self.after),
            ..self
        }
    }
}

/// Without NUL, which a store may not hold, and no longer than [`MAX_TEXT`].
fn cut(text: String) -> String {
    if text.len() <= MAX_TEXT && !text.contains('\0') {
        return text;
    }
    let mut cut = String::new();
    for c in text.chars().filter(|c| *c != '\0') {
        if cut.len() + c.len_utf8() > MAX_TEXT {
            break;
        }
        cut.push(c);
    }
    cut
}

fn bounded(state: String) -> String {
    if state.len() <= MAX_STATE {
        return state;
    }
    let digest = Digest::of_parts([state.as_bytes()]);
    format!("{{\"left_out\":{{\"bytes\":{},\"digest\":\"{digest}\"}}}}", state.len())
}

/// An entry in its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number; the first of a tenant is 1.
    pub number: u64,
    /// The entry.
    pub entry: Entry,
    /// Digest of the record before; zeros for the first.
    pub previous: Digest,
    /// Digest of this one.
    pub digest: Digest,
}

/// The last record of a tenant's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number; zero for an empty chain.
    pub number: u64,
    /// Its digest; zeros for an empty chain.
    pub digest: Digest,
}

impl Head {
    /// An empty chain.
    pub const EMPTY: Self = Self { number: 0, digest: Digest([0; 32]) };
}

/// The record that follows `head`.
pub fn next(tenant: &Tenant, head: Head, entry: Entry) -> Record {
    let number = head.number.saturating_add(1);
    let entry = entry.bounded();
    let digest = digest(tenant, number, head.digest, &entry);
    Record { number, entry, previous: head.digest, digest }
}

/// The canonical form. It holds the tenant, so that a record of one is none of another's.
fn digest(tenant: &Tenant, number: u64, previous: Digest, entry: &Entry) -> Digest {
    Digest::of_parts([
        b"muster audit record 1".as_slice(),
        tenant.as_str().as_bytes(),
        &number.to_be_bytes(),
        &previous.0,
        &entry.at.0.to_be_bytes(),
        entry.actor.as_bytes(),
        entry.role.name().as_bytes(),
        entry.remote.as_bytes(),
        entry.operation.as_bytes(),
        entry.target.as_bytes(),
        entry.before.as_bytes(),
        entry.after.as_bytes(),
        entry.outcome.name().as_bytes(),
    ])
}

/// What is wrong with a chain, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Records are missing, or are there twice.
    #[error("record {found} stands where {expected} should")]
    Gap {
        /// The number that should stand there.
        expected: u64,
        /// The number that does.
        found: u64,
    },
    /// A record was changed, or the one before it.
    #[error("record {0} does not go on from the one before")]
    Link(u64),
    /// A record is not what its digest says.
    #[error("record {0} was changed: it has another digest")]
    Changed(u64),
    /// The last records are missing, or some were added beside the chain.
    #[error("the chain ends with record {found}, and should with {expected}")]
    Head {
        /// The last number as the head has it.
        expected: u64,
        /// The last number that is there.
        found: u64,
    },
}

/// Looks whether records go on from `head`. Returns the head after them, so that a long chain is verified in
/// pages.
///
/// # Errors
/// The first record that is not in its place.
pub fn verify(tenant: &Tenant, head: Head, records: &[Record]) -> Result<Head, Broken> {
    let mut head = head;
    for record in records {
        let expected = head.number.saturating_add(1);
        if record.number != expected {
            return Err(Broken::Gap { expected, found: record.number });
        }
        if record.previous != head.digest {
            return Err(Broken::Link(record.number));
        }
        if record.digest != digest(tenant, record.number, record.previous, &record.entry) {
            return Err(Broken::Changed(record.number));
        }
        head = Head { number: record.number, digest: record.digest };
    }
    Ok(head)
}

/// Looks whether a verified chain ends where its head says.
///
/// # Errors
/// It does not.
pub fn verify_head(verified: Head, head: Head) -> Result<(), Broken> {
    if verified == head {
        return Ok(());
    }
    match verified.number == head.number {
        true => Err(Broken::Changed(head.number)),
        false => Err(Broken::Head { expected: head.number, found: verified.number }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_entry(target: &str) -> Entry {
        Entry {
            at: Timestamp(7),
            actor: "ana".to_owned(),
            role: Role::Operator,
            remote: "192.0.2.1:1".to_owned(),
            operation: "labelAgent".to_owned(),
            target: target.to_owned(),
            before: String::new(),
            after: "{\"team\":\"blue\"}".to_owned(),
            outcome: Outcome::Done,
        }
    }

    fn acme() -> Tenant {
        "acme".parse().unwrap()
    }

    fn mk_chain(length: usize) -> Vec<Record> {
        let mut head = Head::EMPTY;
        let mut records = Vec::new();
        for at in 0..length {
            let record = next(&acme(), head, mk_entry(&format!("agents/{at}")));
            head = Head { number: record.number, digest: record.digest };
            records.push(record);
        }
        records
    }

    #[test]
    fn a_chain_is_verified_whole_and_in_pages() {
        let records = mk_chain(5);
        let last = records.last().unwrap();
        let end = Head { number: 5, digest: last.digest };
        assert_eq!(verify(&acme(), Head::EMPTY, &records), Ok(end));
        let half = verify(&acme(), Head::EMPTY, &records[..2]).unwrap();
        assert_eq!(verify(&acme(), half, &records[2..]), Ok(end));
        assert_eq!(verify_head(end, end), Ok(()));
    }

    #[test]
    fn whatever_is_changed_shows() {
        let whole = mk_chain(4);
        let changed = |change: fn(&mut Vec<Record>)| {
            let mut records = whole.clone();
            change(&mut records);
            verify(&acme(), Head::EMPTY, &records).err()
        };
        assert_eq!(changed(|records| drop(records.remove(1))), Some(Broken::Gap { expected: 2, found: 3 }));
        assert_eq!(changed(|records| records[2].entry.actor.push('x')), Some(Broken::Changed(3)));
        assert_eq!(changed(|records| records[1].entry.after.clear()), Some(Broken::Changed(2)));
        assert_eq!(changed(|records| records[1].entry.at.0 += 1), Some(Broken::Changed(2)));
        assert_eq!(
            changed(|records| {
                // As one who knows how the digest is made, but not how to change all that follow.
                records[1].entry.actor = "eve".to_owned();
                let record = &records[1];
                records[1].digest = digest(&acme(), record.number, record.previous, &record.entry);
            }),
            Some(Broken::Link(3))
        );
        let other: Tenant = "globex".parse().unwrap();
        assert_eq!(verify(&other, Head::EMPTY, &whole), Err(Broken::Changed(1)), "another tenant's records");
    }

    #[test]
    fn missing_last_records_show_by_the_head() {
        let records = mk_chain(3);
        let head = Head { number: 3, digest: records[2].digest };
        let found = verify(&acme(), Head::EMPTY, &records[..2]).unwrap();
        assert_eq!(verify_head(found, head), Err(Broken::Head { expected: 3, found: 2 }));
        let forged = Head { digest: Digest([7; 32]), ..head };
        assert_eq!(verify_head(forged, head), Err(Broken::Changed(3)));
    }

    #[test]
    fn the_canonical_form_stays() {
        let record = next(&acme(), Head::EMPTY, mk_entry("agents/1"));
        assert_eq!(
            record.digest.to_string(),
            "bbff6a64a37fa4ac25f7aef13ced09ec125739382508a7de3f6052e10a1bfc91"
        );
    }

    #[test]
    fn texts_are_bounded() {
        let mut entry = mk_entry(&"é".repeat(MAX_TEXT));
        entry.actor = "a\0b".to_owned();
        entry.after = "x".repeat(MAX_STATE + 1);
        let record = next(&acme(), Head::EMPTY, entry);
        assert_eq!(record.entry.target.len(), MAX_TEXT);
        assert_eq!(record.entry.actor, "ab");
        assert!(record.entry.after.starts_with("{\"left_out\":{\"bytes\":16385,\"digest\":"));
    }
}
