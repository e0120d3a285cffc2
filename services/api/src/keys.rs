//! `/api/v1/keys`: the keys by which agents show who they are.
//!
//! A key's text is in the answer that makes it and nowhere else; the store has its digest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use muster_domain::credential::{
    Credential, Kind, MAX_NAME, MAX_UIDS, digest_of_key, digest_of_name, hint_of, new_key,
};
use muster_domain::ids::{InstanceUid, Timestamp};
use muster_ports::credentials::AddError;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::Shared;
use crate::caller::Caller;
use crate::problem::{ApiError, Problem};
use crate::views::rfc3339;

/// Most credentials of a tenant.
const MAX_KEYS: usize = 100_000;
/// Keys in a page: by default, and at most.
const LISTED: (usize, usize) = (100, 1000);
/// Shortest and longest life of a key.
const LIFE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10 * 365 * 86_400));
/// How long the old key counts after a rotation that says nothing else.
const OVERLAP: Duration = Duration::from_secs(86_400);
/// Attempts at a key while others change it.
const ATTEMPTS: usize = 4;

/// How keys are made.
#[derive(Debug, Clone)]
pub struct KeySettings {
    /// What every key begins with.
    pub prefix: String,
    /// Random characters after it.
    pub length: usize,
    /// How long a key is valid that does not say.
    pub expiration: Duration,
    /// How long before its end a key is shown as expiring.
    pub rotation_warning: Duration,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self {
            prefix: "opamp_".to_owned(),
            length: 32,
            expiration: Duration::from_secs(90 * 86_400),
            rotation_warning: Duration::from_secs(30 * 86_400),
        }
    }
}

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    /// What people call it, at most 200 bytes.
    name: String,
    /// For how long it is valid, at least a minute; as configured if this is left out.
    expires_in_seconds: Option<u64>,
    /// The instance_uids that it may be used for. Those that the server gives to its agents join them. Without
    /// the list it may be used for any.
    instance_uids: Option<BTreeSet<String>>,
}

/// How a key is replaced.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotation {
    /// How long the old key counts beside the new one; a day if this is left out.
    overlap_seconds: Option<u64>,
    /// For how long the new key is valid; as configured if this is left out.
    expires_in_seconds: Option<u64>,
}

/// Tokens or certificates with a name, which are to count no more.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedCredential {
    /// `jwt` or `mtls`.
    kind: String,
    /// The token's `sub`, or the name in the certificate.
    name: String,
}

/// A key, or what is said of tokens or certificates with a name.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyView {
    /// Its id.
    id: String,
    /// What people call it.
    name: String,
    /// `api_key`, `jwt` or `mtls`.
    kind: &'static str,
    /// How a key begins, to recognise it by.
    hint: String,
    /// `active`, `expiring`, `expired` or `revoked`.
    status: &'static str,
    /// The instance_uids that it may be used for; null for any.
    instance_uids: Option<Vec<String>>,
    /// When it was made (RFC 3339).
    created_at: String,
    /// By whom.
    created_by: String,
    /// Until when it is valid (RFC 3339).
    expires_at: Option<String>,
    /// When it was revoked (RFC 3339).
    revoked_at: Option<String>,
}

/// A key that was just made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CreatedKey {
    /// The key itself. It is shown this once.
    key: String,
    /// What will be shown of it later.
    #[serde(flatten)]
    view: KeyView,
}

/// Keys.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyList {
    /// The keys, in the order in which they were made.
    items: Vec<KeyView>,
    /// Where the next page begins; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Which keys.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Keys in a page, 1 to 1000; 100 by default.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Makes a key.
#[utoipa::path(
    post, path = "/api/v1/keys", tag = "keys", operation_id = "createKey",
    request_body = NewKey,
    responses(
        (status = 201, body = CreatedKey),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    body: Result<Json<NewKey>, JsonRejection>,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    let Json(new) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let name = checked_name(&new.name)?;
    let uids = new.instance_uids.map(checked_uids).transpose()?;
    let life = life(&shared, new.expires_in_seconds)?;
    let (key, credential) = shared.make_key(&caller, name, uids, life);
    let created = shared.add(&caller, "createKey", credential).await?;
    Ok((StatusCode::CREATED, Json(CreatedKey { key, view: shared.view(created) })))
}

/// Lists keys, and what is said of tokens and certificates.
#[utoipa::path(
    get, path = "/api/v1/keys", tag = "keys", operation_id = "listKeys", params(ListQuery),
    responses((status = 200, body = KeyList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<KeyList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let limit = query.limit.unwrap_or(LISTED.0);
    if !(1..=LISTED.1).contains(&limit) {
        return Err(ApiError::BadRequest(format!("limit: must be 1 to {}, not {limit}", LISTED.1)));
    }
    let wrong = |_| ApiError::BadRequest("cursor: must be next_cursor of the page before".to_owned());
    let after = query.cursor.map(|cursor| cursor.parse::<Uuid>().map_err(wrong)).transpose()?;
    // One more than asked for tells whether there is another page.
    let mut found = shared.engines.credentials.credentials(&caller.tenant, after, limit + 1).await?;
    let next_cursor = (found.len() > limit).then(|| found[limit - 1].id.to_string());
    found.truncate(limit);
    let items = found.into_iter().map(|credential| shared.view(credential)).collect();
    Ok(Json(KeyList { items, next_cursor }))
}

/// Shows one key.
#[utoipa::path(
    get, path = "/api/v1/keys/{id}", tag = "keys", operation_id = "getKey",
    params(("id" = String, Path, description = "The key's id.")),
    responses((status = 200, body = KeyView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<KeyView>, ApiError> {
    let found = shared.find(&caller, &id).await?;
    Ok(Json(shared.view(found)))
}

/// Revokes a key: within seconds its connections are closed, and nobody gets in by it any more.
#[utoipa::path(
    post, path = "/api/v1/keys/{id}/revoke", tag = "keys", operation_id = "revokeKey",
    params(("id" = String, Path, description = "The key's id.")),
    responses((status = 200, body = KeyView), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn revoke(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<KeyView>, ApiError> {
    let now = (shared.engines.clock)();
    let revoked = shared
        .change(&caller, &id, "revokeKey", |credential| {
            credential.revoked_at.get_or_insert(now);
        })
        .await?;
    Ok(Json(shared.view(revoked)))
}

/// Replaces a key by a new one of the same name and instance_uids. The old one counts for a while longer.
#[utoipa::path(
    post, path = "/api/v1/keys/{id}/rotate", tag = "keys", operation_id = "rotateKey",
    params(("id" = String, Path, description = "The old key's id.")),
    request_body = Rotation,
    responses(
        (status = 201, body = CreatedKey),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(crate) async fn rotate(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Result<Json<Rotation>, JsonRejection>,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    let Json(rotation) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let life = life(&shared, rotation.expires_in_seconds)?;
    let overlap = rotation.overlap_seconds.map_or(OVERLAP, Duration::from_secs);
    if overlap > LIFE.1 {
        return Err(ApiError::BadRequest("overlap_seconds: must be 10 years at most".to_owned()));
    }
    let now = (shared.engines.clock)();
    let old = shared.find(&caller, &id).await?;
    if old.kind != Kind::ApiKey {
        return Err(ApiError::Conflict(format!("{id} is no key: only keys are rotated")));
    }
    if let Err(refusal) = old.check(now) {
        let why = format!("the key is {} already: make a new one", refusal.name());
        return Err(ApiError::Conflict(why));
    }
    let (key, credential) = shared.make_key(&caller, old.name, old.uids, life);
    let created = shared.add(&caller, "rotateKey", credential).await?;
    let end = now.plus(overlap);
    let shorten = |credential: &mut Credential| {
        credential.expires_at = Some(credential.expires_at.map_or(end, |before| before.min(end)));
    };
    shared.change(&caller, &id, "rotateKey", shorten).await?;
    Ok((StatusCode::CREATED, Json(CreatedKey { key, view: shared.view(created) })))
}

/// Revokes all tokens with a `sub`, or all certificates with a name, of this tenant.
#[utoipa::path(
    post, path = "/api/v1/credentials/revoke", tag = "keys", operation_id = "revokeCredential",
    request_body = NamedCredential,
    responses((status = 200, body = KeyView), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn revoke_named(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    body: Result<Json<NamedCredential>, JsonRejection>,
) -> Result<Json<KeyView>, ApiError> {
    let Json(named) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let kind = Kind::named(&named.kind).filter(|kind| *kind != Kind::ApiKey);
    let kind = kind.ok_or_else(|| ApiError::BadRequest("kind: must be jwt or mtls".to_owned()))?;
    let name = checked_name(&named.name)?;
    let now = (shared.engines.clock)();
    let new = Credential {
        tenant: caller.tenant.clone(),
        id: shared.engines.random.uuid(now),
        kind,
        digest: digest_of_name(kind, &caller.tenant, &name),
        name,
        hint: String::new(),
        uids: None,
        created_at: now,
        created_by: caller.actor.clone(),
        expires_at: None,
        revoked_at: Some(now),
        revision: 0,
    };
    let digest = new.digest;
    let revoked = match shared.add(&caller, "revokeCredential", new).await {
        Err(ApiError::Conflict(_)) => {
            let known = shared.engines.credentials.credential_of(&digest).await?;
            let known =
                known.ok_or_else(|| ApiError::Conflict("it is being changed: try again".to_owned()))?;
            let revoke = |credential: &mut Credential| {
                credential.revoked_at.get_or_insert(now);
            };
            shared.change(&caller, &known.id.to_string(), "revokeCredential", revoke).await?
        }
        added => added?,
    };
    Ok(Json(shared.view(revoked)))
}

fn checked_name(name: &str) -> Result<String, ApiError> {
    let name = name.trim();
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let what = format!("name: must be 1 to {MAX_NAME} bytes of text");
        return Err(ApiError::BadRequest(what));
    }
    Ok(name.to_owned())
}

fn checked_uids(uids: BTreeSet<String>) -> Result<BTreeSet<InstanceUid>, ApiError> {
    if uids.len() > MAX_UIDS {
        return Err(ApiError::BadRequest(format!("instance_uids: must be {MAX_UIDS} at most")));
    }
    let parse = |uid: &String| {
        uid.parse().map_err(|error| ApiError::BadRequest(format!("instance_uids: {uid:?}: {error}")))
    };
    uids.iter().map(parse).collect()
}

fn life(shared: &Shared, seconds: Option<u64>) -> Result<Duration, ApiError> {
    let life = seconds.map_or(shared.settings.keys.expiration, Duration::from_secs);
    if (LIFE.0..=LIFE.1).contains(&life) {
        return Ok(life);
    }
    Err(ApiError::BadRequest("expires_in_seconds: must be 60 (a minute) to 315360000 (10 years)".to_owned()))
}

impl Shared {
    fn make_key(
        &self,
        caller: &Caller,
        name: String,
        uids: Option<BTreeSet<InstanceUid>>,
        life: Duration,
    ) -> (String, Credential) {
        let (settings, random) = (&self.settings.keys, &self.engines.random);
        let key = new_key(&settings.prefix, settings.length, || random.bits());
        let now = (self.engines.clock)();
        let credential = Credential {
            tenant: caller.tenant.clone(),
            id: random.uuid(now),
            kind: Kind::ApiKey,
            digest: digest_of_key(&key),
            name,
            hint: hint_of(&settings.prefix, &key),
            uids,
            created_at: now,
            created_by: caller.actor.clone(),
            expires_at: Some(now.plus(life)),
            revoked_at: None,
            revision: 0,
        };
        (key, credential)
    }

    async fn add(&self, caller: &Caller, operation: &str, new: Credential) -> Result<Credential, ApiError> {
        let audit = caller.entry(operation, format!("keys/{}", new.id), new.created_at);
        let audit = audit.with_states(String::new(), state(&new));
        match self.engines.credentials.add_credential(&new, MAX_KEYS, &audit).await {
            Ok(revision) => {
                self.wake().await;
                Ok(Credential { revision, ..new })
            }
            Err(AddError::Exists) => Err(ApiError::Conflict("there is such a credential already".to_owned())),
            Err(AddError::Full(most)) => {
                Err(ApiError::Conflict(format!("the tenant has {most} keys already, which is the most")))
            }
            Err(AddError::Engine(error)) => Err(error.into()),
        }
    }

    async fn find(&self, caller: &Caller, id: &str) -> Result<Credential, ApiError> {
        let none = || ApiError::NotFound(format!("there is no key {id}"));
        let parsed = id.parse().map_err(|_| none())?;
        self.engines.credentials.credential(&caller.tenant, parsed).await?.ok_or_else(none)
    }

    async fn change(
        &self,
        caller: &Caller,
        id: &str,
        operation: &str,
        change: impl Fn(&mut Credential),
    ) -> Result<Credential, ApiError> {
        for _ in 0..ATTEMPTS {
            let before = self.find(caller, id).await?;
            let mut after = before.clone();
            change(&mut after);
            if after == before {
                return Ok(after);
            }
            let audit = caller.entry(operation, format!("keys/{id}"), (self.engines.clock)());
            let audit = audit.with_states(state(&before), state(&after));
            if let Some(revision) = self.engines.credentials.change_credential(&after, Some(&audit)).await? {
                self.wake().await;
                return Ok(Credential { revision, ..after });
            }
        }
        Err(ApiError::Conflict(format!("key {id} is being changed by others: try again")))
    }

    fn view(&self, credential: Credential) -> KeyView {
        let now = (self.engines.clock)();
        let soon = now.plus(self.settings.keys.rotation_warning);
        let status = match credential.check(now) {
            Err(refusal) => refusal.name(),
            Ok(()) if credential.expires_at.is_some_and(|end| end <= soon) => "expiring",
            Ok(()) => "active",
        };
        KeyView {
            id: credential.id.to_string(),
            name: credential.name,
            kind: credential.kind.name(),
            hint: credential.hint,
            status,
            instance_uids: credential.uids.map(|uids| uids.iter().map(ToString::to_string).collect()),
            created_at: rfc3339(credential.created_at),
            created_by: credential.created_by,
            expires_at: credential.expires_at.map(rfc3339),
            revoked_at: credential.revoked_at.map(rfc3339),
        }
    }
}

/// What the audit log says of a credential: nothing that shows it.
fn state(credential: &Credential) -> String {
    let time = |at: Option<Timestamp>| at.map(rfc3339);
    let uids = credential.uids.as_ref().map(|uids| uids.iter().map(ToString::to_string).collect::<Vec<_>>());
    json!({
        "kind": credential.kind.name(),
        "name": credential.name,
        "hint": credential.hint,
        "instance_uids": uids,
        "expires_at": time(credential.expires_at),
        "revoked_at": time(credential.revoked_at),
    })
    .to_string()
}
