//! Who asks: found by [`crate::guard`] before any handler runs, and the only source of a request's tenant.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use muster_domain::access::Role;
use muster_domain::audit::{Entry, Outcome};
use muster_domain::ids::{AgentKey, Tenant, Timestamp};
use muster_domain::tenant::Quotas;

use crate::problem::ApiError;

/// Who asks, and for which tenant.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The tenant that the request is about.
    pub(crate) tenant: Tenant,
    /// Their name.
    pub(crate) actor: String,
    /// What they may do.
    pub(crate) role: Role,
    /// Where the request comes from; empty where that is not known.
    pub(crate) remote: String,
    /// What the tenant may use.
    pub(crate) quotas: Quotas,
}

impl Caller {
    /// The key of the tenant's agent with this uid.
    pub(crate) fn key(&self, uid: &str) -> Result<AgentKey, ApiError> {
        let uid = uid.parse().map_err(|error| ApiError::BadRequest(format!("{error}")))?;
        Ok(AgentKey { tenant: self.tenant.clone(), uid })
    }

    /// What is written in the audit log of an operation that this caller has done to `target`.
    pub(crate) fn entry(&self, operation: &str, target: impl Into<String>, at: Timestamp) -> Entry {
        Entry {
            at,
            actor: self.actor.clone(),
            role: self.role,
            remote: self.remote.clone(),
            operation: operation.to_owned(),
            target: target.into(),
            before: String::new(),
            after: String::new(),
            outcome: Outcome::Done,
        }
    }
}

/// A handler that asks for a caller where the guard has let nobody in is a defect: nothing is done.
pub(crate) struct NoCaller;

impl IntoResponse for NoCaller {
    fn into_response(self) -> Response {
        ApiError::Unauthenticated("the request shows nobody: send a token".to_owned()).into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = NoCaller;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoCaller> {
        parts.extensions.get::<Self>().cloned().ok_or(NoCaller)
    }
}

/// Where a request comes from.
pub(crate) struct Remote(pub(crate) Option<std::net::SocketAddr>);

impl<S: Sync> FromRequestParts<S> for Remote {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let info = parts.extensions.get::<axum::extract::ConnectInfo<crate::listener::Peer>>();
        Ok(Self(info.map(|info| info.0.0)))
    }
}
