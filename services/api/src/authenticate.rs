//! Who shows what: from the headers of a request to the principal that they prove.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use muster_auth::{Claims, Issuer, VerifyError};
use muster_domain::access::{Principal, Role};
use muster_domain::ids::Tenant;
use muster_domain::network::Network;
use muster_domain::tenant::{Quotas, TenantRecord};
use muster_domain::token::{self, State};
use muster_ports::Clock;
use muster_ports::access::AccessStore;
use serde_json::Value;

use crate::problem::ApiError;

/// Longest header `Authorization` that is looked at, in bytes.
const LONGEST: usize = 8 << 10;

/// What a request shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Nothing.
    Nothing,
    /// A token of the API.
    Token(String),
    /// A signed token of an issuer.
    Signed(String),
}

/// Reads what a request shows.
///
/// # Errors
/// It shows what the API does not take: the agent's credentials with 403, anything else with 401.
pub(crate) fn shown(headers: &HeaderMap, agent_prefix: &str) -> Result<Shown, ApiError> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = all.next() else { return Ok(Shown::Nothing) };
    if all.next().is_some() {
        return Err(refused("Authorization: is given more than once; send one"));
    }
    if value.len() > LONGEST {
        return Err(refused("Authorization: is longer than any token"));
    }
    let text = value.to_str().map_err(|_| refused("Authorization: is not text"))?;
    let (scheme, credential) = text.split_once(' ').unwrap_or((text, ""));
    let credential = credential.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || credential.is_empty() {
        return Err(refused("Authorization: send `Bearer TOKEN`; make one with `muster tokens create`"));
    }
    if credential.starts_with(agent_prefix) {
        let what = "this is an agent's credential, which the API does not take: use a token of the API";
        return Err(ApiError::Forbidden(what.to_owned()));
    }
    if credential.starts_with(token::PREFIX) && credential.len() <= token::MAX_LENGTH {
        return Ok(Shown::Token(credential.to_owned()));
    }
    if credential.split('.').count() == 3 {
        return Ok(Shown::Signed(credential.to_owned()));
    }
    Err(refused("the token is none of this server's"))
}

pub(crate) fn refused(what: &str) -> ApiError {
    ApiError::Unauthenticated(what.to_owned())
}

/// The address that a request comes from: the last one that a trusted proxy does not vouch for.
pub(crate) fn client(remote: Option<IpAddr>, headers: &HeaderMap, proxies: &[Network]) -> Option<IpAddr> {
    let mut client = remote?;
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let mut hops: Vec<&str> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
    while proxies.iter().any(|proxy| proxy.contains(client)) {
        let Some(before) = hops.pop() else { break };
        match before.parse() {
            Ok(address) => client = address,
            Err(_) => break,
        }
    }
    Some(client)
}

/// A principal, and what their tenant may use.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated {
    pub(crate) principal: Principal,
    pub(crate) quotas: Quotas,
}

/// Finds out who a token is of.
pub(crate) async fn by_token(
    store: &Arc<dyn AccessStore>,
    clock: &Clock,
    text: &str,
) -> Result<Authenticated, ApiError> {
    let Some((token, tenant)) = store.token(&token::digest(text)).await? else {
        return Err(refused("the token is none of this server's"));
    };
    match token.state(clock()) {
        State::Live if tenant.is_live() => {}
        State::Expired => {
            return Err(refused("the token has expired: have an admin make another one"));
        }
        State::Live | State::Revoked => return Err(refused("the token was revoked")),
    }
    let principal = Principal { name: token.account, tenant: token.tenant, role: token.role };
    Ok(Authenticated { principal, quotas: tenant.quotas })
}

/// Who has issued tokens for people, and what they say of them.
pub struct People {
    /// The issuer.
    pub issuer: Issuer,
    /// The claim that names them.
    pub account_claim: String,
    /// The claim that names their tenant.
    pub tenant_claim: String,
    /// The tenant of those whose token names none; they are refused where it is not given.
    pub tenant: Option<Tenant>,
    /// The claim that names their role: a text, or a list of which the known ones count.
    pub role_claim: String,
    /// The most that a token of the issuer allows, whatever it says.
    pub most: Role,
}

impl People {
    /// Who a token is of, by what it says.
    fn principal(&self, claims: &Claims) -> Result<Principal, ApiError> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let name = text(&self.account_claim).filter(|name| token::check_account(name).is_ok());
        let name = name.ok_or_else(|| {
            refused(&format!("the token has no claim {} that is a name", self.account_claim))
        })?;
        let tenant = match text(&self.tenant_claim) {
            Some(tenant) => tenant.parse().ok(),
            None => self.tenant.clone(),
        };
        let tenant = tenant.ok_or_else(|| {
            refused(&format!("the token has no claim {} that is a tenant", self.tenant_claim))
        })?;
        let said: Vec<&str> = match claims.get(&self.role_claim) {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            one => one.and_then(Value::as_str).into_iter().collect(),
        };
        let roles = said.into_iter().filter_map(|role| role.parse::<Role>().ok());
        let allowed = roles.filter(|role| self.most.includes(*role));
        // Of several, the one that allows most.
        let role = allowed.reduce(|best, role| if role.includes(best) { role } else { best });
        let role = role.ok_or_else(|| {
            ApiError::Forbidden(format!(
                "the token gives no role by its claim {} that it may give",
                self.role_claim
            ))
        })?;
        Ok(Principal { name: name.to_owned(), tenant, role })
    }
}

/// Finds out who a token of the issuer is of.
pub(crate) async fn by_issuer(
    people: &People,
    store: &Arc<dyn AccessStore>,
    clock: &Clock,
    text: &str,
) -> Result<Authenticated, ApiError> {
    let claims = match people.issuer.verify(text, clock()).await {
        Ok(claims) => claims,
        Err(VerifyError::Refused(why)) => return Err(refused(&why.to_string())),
        Err(VerifyError::Unavailable(_)) => {
            return Err(ApiError::Busy(
                "the issuer of the token does not answer: try again later".to_owned(),
            ));
        }
    };
    let principal = people.principal(&claims)?;
    match live_tenant(store, &principal.tenant).await? {
        Some(tenant) => Ok(Authenticated { principal, quotas: tenant.quotas }),
        None => Err(refused("the token is of a tenant that is not there")),
    }
}

/// The tenant, if it is there and not removed.
pub(crate) async fn live_tenant(
    store: &Arc<dyn AccessStore>,
    tenant: &Tenant,
) -> Result<Option<TenantRecord>, ApiError> {
    Ok(store.tenant(tenant).await?.filter(TenantRecord::is_live))
}

/// Who asks where nobody has to show who they are.
pub(crate) fn anonymous(tenant: Tenant) -> Principal {
    Principal { name: "anonymous".to_owned(), tenant, role: Role::System }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn what_is_shown_is_told_apart() {
        let shown = |values: &[&str]| shown(&headers("authorization", values), "opamp_");
        assert_eq!(shown(&[]).unwrap(), Shown::Nothing);
        assert_eq!(shown(&["Bearer muster_ab"]).unwrap(), Shown::Token("muster_ab".to_owned()));
        assert_eq!(shown(&["bearer  muster_ab"]).unwrap(), Shown::Token("muster_ab".to_owned()));
        assert_eq!(shown(&["Bearer a.b.c"]).unwrap(), Shown::Signed("a.b.c".to_owned()));
        assert!(matches!(shown(&["Bearer opamp_abc"]), Err(ApiError::Forbidden(_))));
        let (large, long) =
            (format!("Bearer {}", "a.".repeat(LONGEST)), format!("Bearer muster_{}", "a".repeat(200)));
        for bad in [
            &["Basic YTpi"][..],
            &["Bearer"],
            &["Bearer "],
            &["muster_ab"],
            &["Bearer x"],
            &["Bearer a.b"],
            &["Bearer a.b.c.d"],
            &["Bearer muster_a", "Bearer muster_b"],
            &[&large],
            &[&long],
        ] {
            assert!(matches!(shown(bad), Err(ApiError::Unauthenticated(_))), "{bad:?}");
        }
    }

    #[test]
    fn only_trusted_proxies_say_where_a_request_comes_from() {
        let proxies: Vec<Network> = vec!["10.0.0.0/8".parse().unwrap()];
        let from = |remote: &str, forwarded: &[&str]| {
            let headers = headers("x-forwarded-for", forwarded);
            client(Some(remote.parse().unwrap()), &headers, &proxies).unwrap().to_string()
        };
        assert_eq!(from("192.0.2.1", &["203.0.113.9"]), "192.0.2.1");
        assert_eq!(from("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(from("10.0.0.1", &["1.1.1.1, 203.0.113.9", "10.0.0.2"]), "203.0.113.9");
        assert_eq!(from("10.0.0.1", &["nonsense"]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &[]), "10.0.0.1");
    }
}
