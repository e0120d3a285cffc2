//! Agents' credentials: the store has them, and a replicated bucket carries them to gateways, which go on
//! without the store.
//!
//! Each credential is a value under the digest that it is found by. The head says up to which change of the
//! store the bucket is, and names the latest changes that take something away: a gateway that sees it move
//! looks at those. A bucket without a head was lost, or never filled: it says nothing about credentials. The
//! store counts generations, too: what the bucket holds of a generation before the head's is of a database that
//! was set back since, and counts for nothing.

use async_trait::async_trait;
use bytes::Bytes;
use muster_domain::audit::Entry;
use muster_domain::credential::{Credential, Kind};
use muster_domain::ids::{Cell, Digest, InstanceUid, Tenant, Timestamp};
use muster_proto::Message;
use muster_proto::bus::{AgentCredential, CredentialChange, CredentialsHead};
use uuid::Uuid;

use crate::EngineError;
use crate::kv::{KeyValue, Precondition, PutError};

/// Attempts at one value while others write it.
const ATTEMPTS: usize = 8;
/// Credentials that are read from the store at once.
const PAGE: usize = 500;
/// Changes that the head names.
const RECENT: usize = 128;

/// How far the credentials of a store have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// How often the store was set back and brought forward again.
    pub generation: u64,
    /// Number of the last change.
    pub revision: u64,
}

/// Why a credential was not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// There is one with the same id or digest.
    #[error("there is such a credential already")]
    Exists,
    /// The tenant has as many as it may.
    #[error("the tenant has {0} credentials already")]
    Full(usize),
    /// The engine did not do it; the credential may have been added all the same.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Agents' credentials. Every change gets the next revision in its own transaction, so that who has read up to
/// a revision has seen every change up to it.
#[async_trait]
pub trait CredentialStore: Send + Sync {
    /// Adds a credential, with its record of the audit log, unless the tenant has `most`. Its own revision counts for nothing. Returns the one it
    /// got.
    async fn add_credential(&self, new: &Credential, most: usize, audit: &Entry) -> Result<u64, AddError>;

    /// Writes name, uids, expiry and revocation, and the record of the audit log, of a credential that is still at the revision which the given
    /// one has. Returns its new revision; `None` if it is not there or was changed.
    async fn change_credential(
        &self,
        changed: &Credential,
        audit: Option<&Entry>,
    ) -> Result<Option<u64>, EngineError>;

    /// A credential of a tenant.
    async fn credential(&self, tenant: &Tenant, id: Uuid) -> Result<Option<Credential>, EngineError>;

    /// The credential of any tenant with this digest.
    async fn credential_of(&self, digest: &Digest) -> Result<Option<Credential>, EngineError>;

    /// A tenant's credentials in order of their ids, after `after`. Fewer than `limit` are the last ones.
    async fn credentials(
        &self,
        tenant: &Tenant,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Credential>, EngineError>;

    /// The credentials of all tenants that changed last after this revision, in order of their revisions.
    async fn credentials_since(&self, revision: u64, limit: usize) -> Result<Vec<Credential>, EngineError>;

    /// How far they have changed.
    async fn credential_progress(&self) -> Result<Progress, EngineError>;

    /// Brings a store that was set back to a revision of at least this one and to this generation, where it is
    /// behind.
    async fn lift_credentials(&self, to: Progress) -> Result<(), EngineError>;
}

/// What the head of the bucket says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// How far the bucket is.
    pub progress: Progress,
    /// Every change after this revision that takes something away is among the recent ones.
    pub recent_after: u64,
    /// The latest of these: revision and digest, in order.
    pub recent: Vec<(u64, Digest)>,
}

fn head_key(cell: &Cell) -> String {
    format!("credentials-head/{cell}")
}

fn key_of(cell: &Cell, digest: &Digest) -> String {
    format!("credentials/{cell}/{digest}")
}

/// What the bucket's head says; `None` if the bucket is not filled.
///
/// # Errors
/// If the engine does not say, or holds something else.
pub async fn head(bucket: &dyn KeyValue, cell: &Cell) -> Result<Option<Head>, EngineError> {
    Ok(versioned_head(bucket, cell).await?.map(|(head, _)| head))
}

async fn versioned_head(bucket: &dyn KeyValue, cell: &Cell) -> Result<Option<(Head, u64)>, EngineError> {
    let key = head_key(cell);
    let Some(found) = bucket.get(&key).await? else { return Ok(None) };
    let wire = CredentialsHead::decode(found.value).map_err(|error| corrupt(&key, &error))?;
    let mut recent = Vec::with_capacity(wire.recent.len());
    for change in wire.recent {
        let digest = Digest::try_from(change.digest.as_ref()).map_err(|error| corrupt(&key, &error))?;
        recent.push((change.revision, digest));
    }
    let progress = Progress { generation: wire.generation, revision: wire.revision };
    Ok(Some((Head { progress, recent_after: wire.recent_after, recent }, found.version)))
}

/// The credential with this digest, and the generation of the store that it was written from.
///
/// # Errors
/// If the engine does not say, or holds something else.
pub async fn read(
    bucket: &dyn KeyValue,
    cell: &Cell,
    digest: &Digest,
) -> Result<Option<(Credential, u64)>, EngineError> {
    let key = key_of(cell, digest);
    let Some(found) = bucket.get(&key).await? else { return Ok(None) };
    from_wire(&key, *digest, &found.value).map(Some)
}

/// Brings the bucket up to the store. Any number of callers may do this at once. Returns whether anything was
/// to be done.
///
/// # Errors
/// If an engine did not do all of it; what was done is no harm, and the same call may be made again.
pub async fn sync(
    store: &dyn CredentialStore,
    bucket: &dyn KeyValue,
    cell: &Cell,
) -> Result<bool, EngineError> {
    for _ in 0..ATTEMPTS {
        let found = versioned_head(bucket, cell).await?;
        let progress = store.credential_progress().await?;
        let there = found.as_ref().map(|(head, _)| head.progress);
        match there {
            Some(there) if there == progress => return Ok(false),
            // The store was restored from a backup: what was decided since is not known any more.
            Some(there)
                if there.generation > progress.generation
                    || there.generation == progress.generation && there.revision > progress.revision =>
            {
                let to = Progress { generation: there.generation + 1, revision: there.revision + 1 };
                store.lift_credentials(to).await?;
                continue;
            }
            _ => {}
        }
        let goes_on = there.is_some_and(|there| there.generation == progress.generation);
        let (mut head, version) = match found {
            Some((head, version)) if goes_on => (head, Some(version)),
            Some((_, version)) => {
                (Head { recent_after: progress.revision, ..Head::default() }, Some(version))
            }
            None => (Head { recent_after: progress.revision, ..Head::default() }, None),
        };
        let mut from = head.progress.revision;
        loop {
            let page = store.credentials_since(from, PAGE).await?;
            for credential in &page {
                write(bucket, cell, credential, progress.generation).await?;
                if goes_on && takes_away(credential) {
                    head.recent.retain(|(_, digest)| *digest != credential.digest);
                    head.recent.push((credential.revision, credential.digest));
                }
                from = credential.revision;
            }
            if page.len() < PAGE {
                break;
            }
        }
        while head.recent.len() > RECENT {
            head.recent_after = head.recent.remove(0).0;
        }
        // What changed while the pages were read is read again next time.
        head.progress = progress;
        let precondition = version.map_or(Precondition::Absent, Precondition::Version);
        match bucket.put(&head_key(cell), head_to_wire(&head), precondition).await {
            Ok(_) => return Ok(true),
            Err(PutError::Conflict) => {}
            Err(PutError::Engine(error)) => return Err(error),
        }
    }
    Err(contended(&head_key(cell)))
}

/// Whether somebody may do less by it than before.
fn takes_away(credential: &Credential) -> bool {
    credential.revoked_at.is_some() || credential.uids.is_some() || credential.expires_at.is_some()
}

async fn write(
    bucket: &dyn KeyValue,
    cell: &Cell,
    credential: &Credential,
    generation: u64,
) -> Result<(), EngineError> {
    let key = key_of(cell, &credential.digest);
    for _ in 0..ATTEMPTS {
        let precondition = match bucket.get(&key).await? {
            None => Precondition::Absent,
            Some(found) => match from_wire(&key, credential.digest, &found.value) {
                Ok((there, of)) if (of, there.revision) >= (generation, credential.revision) => return Ok(()),
                // What cannot be read is replaced.
                _ => Precondition::Version(found.version),
            },
        };
        match bucket.put(&key, to_wire(credential, generation), precondition).await {
            Ok(_) => return Ok(()),
            Err(PutError::Conflict) => {}
            Err(PutError::Engine(error)) => return Err(error),
        }
    }
    Err(contended(&key))
}

fn head_to_wire(head: &Head) -> Bytes {
    let change = |(revision, digest): &(u64, Digest)| CredentialChange {
        revision: *revision,
        digest: Bytes::copy_from_slice(&digest.0),
    };
    let wire = CredentialsHead {
        generation: head.progress.generation,
        revision: head.progress.revision,
        recent_after: head.recent_after,
        recent: head.recent.iter().map(change).collect(),
    };
    wire.encode_to_vec().into()
}

fn to_wire(credential: &Credential, generation: u64) -> Bytes {
    let uids = credential.uids.iter().flatten();
    let wire = AgentCredential {
        tenant: credential.tenant.to_string(),
        id: credential.id.as_bytes().to_vec().into(),
        kind: credential.kind.name().to_owned(),
        digest: Bytes::copy_from_slice(&credential.digest.0),
        name: credential.name.clone(),
        is_bound: credential.uids.is_some(),
        instance_uids: uids.map(|uid| uid.as_bytes().to_vec().into()).collect(),
        created_at_us: credential.created_at.0,
        expires_at_us: credential.expires_at.map(|at| at.0),
        revoked_at_us: credential.revoked_at.map(|at| at.0),
        revision: credential.revision,
        generation,
    };
    wire.encode_to_vec().into()
}

fn from_wire(key: &str, digest: Digest, value: &Bytes) -> Result<(Credential, u64), EngineError> {
    let wire = AgentCredential::decode(value.clone()).map_err(|error| corrupt(key, &error))?;
    if wire.digest.as_ref() != digest.0 {
        return Err(corrupt(key, &"the value is of another digest"));
    }
    let mut uids = wire.is_bound.then(std::collections::BTreeSet::new);
    if let Some(uids) = &mut uids {
        for uid in &wire.instance_uids {
            uids.insert(InstanceUid::try_from(uid.as_ref()).map_err(|error| corrupt(key, &error))?);
        }
    }
    let credential = Credential {
        tenant: wire.tenant.parse().map_err(|error| corrupt(key, &error))?,
        id: Uuid::from_slice(&wire.id).map_err(|error| corrupt(key, &error))?,
        kind: Kind::named(&wire.kind).ok_or_else(|| corrupt(key, &"the kind is unknown"))?,
        digest,
        name: wire.name,
        hint: String::new(),
        uids,
        created_at: Timestamp(wire.created_at_us),
        created_by: String::new(),
        expires_at: wire.expires_at_us.map(Timestamp),
        revoked_at: wire.revoked_at_us.map(Timestamp),
        revision: wire.revision,
    };
    Ok((credential, wire.generation))
}

fn corrupt(key: &str, reason: &dyn std::fmt::Display) -> EngineError {
    EngineError::Corrupt { engine: "credentials bucket", place: key.to_owned(), reason: reason.to_string() }
}

fn contended(key: &str) -> EngineError {
    EngineError::Unavailable {
        engine: "credentials bucket",
        reason: format!("{key} was changed by others {ATTEMPTS} times in a row"),
    }
}
