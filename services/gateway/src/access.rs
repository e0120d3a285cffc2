//! Who may speak with the gateway: found out before the upgrade, and for as long as the connection lasts.
//!
//! A credential is read from the replicated bucket and remembered; the store is not asked. The tenant is the
//! credential's, never what an agent says.

mod credentials;
mod failures;
mod shown;

use std::fmt;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use muster_domain::budget::Rate;
use muster_domain::credential::{Kind, Refusal, digest_of_key};
use muster_domain::ids::{InstanceUid, Tenant, Timestamp};
use muster_ports::kv::KeyValue;
use tracing::{debug, warn};

use crate::access::credentials::Held;
pub(crate) use crate::access::credentials::{Credentials, keep};
use crate::access::failures::Failures;
use crate::access::shown::Shown;
use crate::{Shared, upstream};

/// Tenant of agents that show nothing.
const DEFAULT_TENANT: &str = "default";

/// How agents show who they are; by default nobody is asked, and all are of tenant `default`.
#[derive(Clone, Default)]
pub struct Access(Option<Arc<Ways>>);

/// The ways in which agents may show who they are.
#[derive(Clone)]
pub struct Ways {
    /// Whether agents that show nothing are let in, as of tenant `default`.
    pub anonymous: bool,
    /// Keys, as `Authorization: Bearer`.
    pub api_key: bool,
    /// Keys, as the password of `Authorization: Basic`.
    pub basic: bool,
    /// What every key begins with.
    pub key_prefix: String,
    /// A key that ends before this time is over is warned of.
    pub rotation_warning: Duration,
    /// Attempts of one address that may fail; more get 429 for a while, also good ones that are not remembered.
    pub failures: Rate,
    /// The bucket of credentials.
    pub credentials: Arc<dyn KeyValue>,
}

impl Access {
    /// Agents show who they are in one of these ways.
    pub fn checked(ways: Ways) -> Self {
        Self(Some(Arc::new(ways)))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(ways) = &self.0 else { return f.write_str("Access(nobody is asked)") };
        f.debug_struct("Access")
            .field("anonymous", &ways.anonymous)
            .field("api_key", &ways.api_key)
            .field("basic", &ways.basic)
            .field("failures", &ways.failures)
            .finish_non_exhaustive()
    }
}

/// What the gateway keeps of access.
pub(crate) struct Guard {
    ways: Option<Arc<Ways>>,
    credentials: Credentials,
    failures: Failures,
}

impl Guard {
    pub(crate) fn new(access: &Access) -> Self {
        let rate = access.0.as_ref().map_or(Rate { per_second: 1, burst: 1 }, |ways| ways.failures);
        Self { ways: access.0.clone(), credentials: Credentials::default(), failures: Failures::new(rate) }
    }
}

/// For whom a connection or a request speaks.
#[derive(Clone)]
pub(crate) struct Pass {
    /// The tenant.
    pub(crate) tenant: Tenant,
    held: Option<Arc<Held>>,
}

impl Pass {
    /// That of an agent that shows nothing.
    pub(crate) fn anonymous() -> Option<Self> {
        Some(Self { tenant: DEFAULT_TENANT.parse().ok()?, held: None })
    }

    /// Whether an agent with this instance_uid may use it.
    pub(crate) fn may_use(&self, uid: InstanceUid) -> bool {
        self.held.as_ref().is_none_or(|held| held.may_use(uid))
    }

    /// Waits until the credential is revoked; for ever without one.
    pub(crate) async fn revoked(&self) {
        match &self.held {
            Some(held) => held.revoked().await,
            None => pending().await,
        }
    }

    /// When the credential ends.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        self.held.as_ref().and_then(|held| held.expires_at())
    }

    /// Lets an instance_uid that the server gives join those that the credential may be used for.
    ///
    /// # Errors
    /// Why it may not be used, for the log.
    pub(crate) async fn join(&self, shared: &Shared, uid: InstanceUid) -> Result<(), String> {
        match &self.held {
            Some(held) if !held.may_use(uid) => credentials::join(shared, held, uid).await,
            _ => Ok(()),
        }
    }
}

/// What an agent is told whose credential may not be used for its instance_uid.
pub(crate) fn not_for(uid: InstanceUid) -> String {
    format!("the credential may not be used for instance_uid {uid}: use the agent's own")
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Nothing is shown, and something has to be.
    Nothing,
    /// What is shown is not well formed, or of a kind that is not taken here.
    Malformed(&'static str),
    /// Nobody knows it.
    Unknown,
    /// It has ended.
    Ended(Refusal),
    /// Too many attempts of the address failed.
    TooMany(Duration),
    /// Nobody can say now.
    NotNow,
}

impl Denied {
    /// As metrics and logs name it.
    fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "no_credential",
            Self::Malformed(_) => "malformed",
            Self::Unknown => "unknown",
            Self::Ended(refusal) => refusal.name(),
            Self::TooMany(_) => "too_many_failures",
            Self::NotNow => "unavailable",
        }
    }

    fn answer(&self, ways: &Ways, retry_after: Duration) -> Response {
        let text = match self {
            Self::Nothing => "no credential: send one as Authorization",
            Self::Malformed(what) => what,
            Self::Unknown => "the credential is not known",
            Self::Ended(Refusal::Revoked) => "the credential is revoked",
            Self::Ended(Refusal::Expired) => "the credential has expired",
            Self::TooMany(_) => "too many attempts from this address have failed: come back later",
            Self::NotNow => "credentials cannot be checked now: come back later",
        };
        let text = format!("{text}\n");
        let seconds = |wait: Duration| wait.as_secs().max(1).to_string();
        match self {
            Self::TooMany(wait) => {
                (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, seconds(*wait))], text).into_response()
            }
            Self::NotNow => {
                (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, seconds(retry_after))], text).into_response()
            }
            _ => {
                let scheme = if ways.basic && !ways.api_key { "Basic" } else { "Bearer" };
                let challenge = format!("{scheme} realm=\"opamp\"");
                (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, challenge)], text).into_response()
            }
        }
    }
}

/// Stands before every route of agents: a request that is let in carries its [`Pass`].
pub(crate) async fn stand(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    match admit(&shared, request.headers(), peer).await {
        Ok(pass) => {
            request.extensions_mut().insert(pass);
            next.run(request).await
        }
        Err(answer) => *answer,
    }
}

/// Finds out for whom a request speaks.
///
/// # Errors
/// The answer to who is not let in: 401, 429 after too many failures of the address, 503 while credentials
/// cannot be read.
async fn admit(shared: &Shared, headers: &HeaderMap, peer: SocketAddr) -> Result<Pass, Box<Response>> {
    let no_tenant = || Box::new(StatusCode::INTERNAL_SERVER_ERROR.into_response());
    let Some(ways) = &shared.access.ways else { return Pass::anonymous().ok_or_else(no_tenant) };
    let denied = match find(shared, ways, headers, peer).await {
        Ok(Some(pass)) => return Ok(pass),
        Ok(None) => return Pass::anonymous().ok_or_else(no_tenant),
        Err(denied) => denied,
    };
    shared.metrics.denied.with_label_values(&[denied.name()]).inc();
    if !matches!(denied, Denied::TooMany(_) | Denied::NotNow) {
        shared.access.failures.count(peer.ip());
    }
    if let Some(more) = shared.outages.denied.tell((shared.engines.clock)()) {
        warn!(event = "agent_denied", remote_addr = %peer, reason = denied.name(), more, "somebody is not let in");
    }
    debug!(event = "agent_denied", remote_addr = %peer, reason = denied.name(), "somebody is not let in");
    Err(Box::new(denied.answer(ways, upstream::retry_after(shared))))
}

/// For whom a request speaks; `None` for nobody, where that is allowed.
async fn find(
    shared: &Shared,
    ways: &Ways,
    headers: &HeaderMap,
    peer: SocketAddr,
) -> Result<Option<Pass>, Denied> {
    let held = match shown::read(headers)? {
        None if ways.anonymous => return Ok(None),
        None => return Err(Denied::Nothing),
        Some(Shown::Bearer(key)) if ways.api_key && key.starts_with(&ways.key_prefix) => {
            credentials::find(shared, ways, digest_of_key(&key), Kind::ApiKey, peer.ip()).await?
        }
        Some(Shown::Basic(password)) if ways.basic => {
            credentials::find(shared, ways, digest_of_key(&password), Kind::ApiKey, peer.ip()).await?
        }
        Some(Shown::Bearer(_)) => return Err(Denied::Unknown),
        Some(Shown::Basic(_)) => {
            return Err(Denied::Malformed("passwords are not taken here: send a key as Bearer"));
        }
    };
    let now = (shared.engines.clock)();
    held.check(now).map_err(Denied::Ended)?;
    if held.expires_at().is_some_and(|end| end <= now.plus(ways.rotation_warning)) {
        shared.metrics.expiring.inc();
        if let Some(more) = shared.outages.expiring.tell(now) {
            warn!(event = "credential_expiring", tenant = %held.tenant, credential = %held.name(), remote_addr = %peer, more, "an agent's credential ends soon: rotate it");
        }
    }
    Ok(Some(Pass { tenant: held.tenant.clone(), held: Some(held) }))
}
