//! The way in: finds out who asks, which operation and tenant it is about, and whether that may be.
//!
//! It looks the operation up by method and route in the OpenAPI document, and who may do it in
//! [`muster_domain::access`]. A route that the document does not have serves nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use muster_domain::access::{self, Decision, Operation, Principal};
use muster_domain::audit::Outcome;
use muster_domain::budget::Rate;
use muster_domain::ids::Tenant;
use muster_domain::network::Network;
use muster_domain::tenant::Quotas;
use muster_ports::Clock;
use muster_ports::access::AccessStore;
use tracing::{debug, info, warn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi, PathItem};

use crate::Engines;
use crate::authenticate::{
    Authenticated, People, Shown, anonymous, by_issuer, by_token, client, live_tenant, refused, shown,
};
use crate::caller::{Caller, Remote};
use crate::limits::{self, Limits};
use crate::problem::ApiError;

/// The OpenAPI document's own path, which it does not name.
pub(crate) const DOCUMENT: &str = "/api/v1/openapi.json";
/// Names the tenant that a request of role system is about.
pub(crate) const TENANT_HEADER: &str = "muster-tenant";
/// The operation that shows the audit log, also that of a tenant which was removed.
const AUDIT: &str = "listAudit";

/// Who may ask, from where, and how often.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Whether everybody must show who they are; else who shows nothing has role system.
    pub is_required: bool,
    /// What agents' keys begin with.
    pub agent_prefix: String,
    /// From where requests are taken; from everywhere where none is given.
    pub allowed_networks: Vec<Network>,
    /// Proxies that say truly where a request comes from.
    pub trusted_proxies: Vec<Network>,
    /// Origins of web pages that may ask.
    pub cors_origins: Vec<String>,
    /// Requests of a tenant on this process, where everybody must show who they are.
    pub requests: Rate,
    /// Failed attempts of an address to show who it is.
    pub failures: Rate,
}

impl Default for Rules {
    /// Nobody has to show who they are; 1,000 requests a second of a tenant, 2,000 at once; one failed attempt
    /// a second of an address, 20 at once.
    fn default() -> Self {
        Self {
            is_required: false,
            agent_prefix: "opamp_".to_owned(),
            allowed_networks: Vec::new(),
            trusted_proxies: Vec::new(),
            cors_origins: Vec::new(),
            requests: Rate { per_second: 1_000, burst: 2_000 },
            failures: Rate { per_second: 1, burst: 20 },
        }
    }
}

/// What stands before every route.
pub(crate) struct Guard {
    /// Operations by route and method.
    routes: BTreeMap<String, BTreeMap<&'static str, String>>,
    rules: Rules,
    /// The tenant of who shows nothing.
    home: Tenant,
    store: Arc<dyn AccessStore>,
    people: Option<Arc<People>>,
    clock: Clock,
    requests: Limits<Tenant>,
    failures: Limits<IpAddr>,
}

impl Guard {
    /// Stands before the routes of this document.
    pub(crate) fn new(document: &OpenApi, home: Tenant, rules: Rules, engines: &Engines) -> Self {
        Self {
            routes: routes(document),
            rules,
            home,
            store: Arc::clone(&engines.access),
            people: engines.people.clone(),
            clock: engines.clock.clone(),
            requests: Limits::new(),
            failures: Limits::new(),
        }
    }

    /// Who asks; nobody for what is public.
    async fn admit(
        &self,
        operation: &'static Operation,
        parts: &Parts,
        remote: Option<IpAddr>,
    ) -> Result<Option<Caller>, ApiError> {
        if operation.is_public {
            return Ok(None);
        }
        let headers = &parts.headers;
        let address = client(remote, headers, &self.rules.trusted_proxies);
        self.check_network(address)?;
        let named = named_tenant(headers)?;
        let Authenticated { principal, mut quotas } = self.authenticate(headers, address).await?;
        let remote = address.map(|address| address.to_canonical().to_string()).unwrap_or_default();
        let tenant = match access::decide(&principal, operation, named.as_ref()) {
            Decision::Allowed(tenant) => tenant,
            Decision::Denied(why) => {
                self.tell_denied(operation, &principal, &remote, parts.uri.path()).await;
                return Err(ApiError::Forbidden(why));
            }
        };
        if tenant != principal.tenant {
            match live_tenant(&self.store, &tenant).await? {
                Some(record) => quotas = record.quotas,
                None if operation.id == AUDIT => {}
                None => return Err(ApiError::NotFound(format!("there is no tenant {tenant}"))),
            }
        }
        if self.rules.is_required {
            let rate = rate(&quotas, self.rules.requests);
            self.requests.take(tenant.clone(), rate).map_err(ApiError::TooMany)?;
        }
        Ok(Some(Caller { tenant, actor: principal.name, role: principal.role, remote, quotas }))
    }

    fn check_network(&self, address: Option<IpAddr>) -> Result<(), ApiError> {
        let allowed = &self.rules.allowed_networks;
        let is_in = |address: IpAddr| allowed.iter().any(|network| network.contains(address));
        if allowed.is_empty() || address.is_some_and(is_in) {
            return Ok(());
        }
        let from = address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
        info!(
            event = "api_address_refused",
            remote_addr = from,
            "a request came from outside of auth.api.allowed_networks"
        );
        Err(ApiError::Forbidden(format!("requests from {from} are not taken (auth.api.allowed_networks)")))
    }

    /// Finds out who asks. Failed attempts of an address are limited: what it shows is then not looked at.
    async fn authenticate(
        &self,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> Result<Authenticated, ApiError> {
        let client = limits::client(address);
        if let Some(client) = &client {
            self.failures.look(client, self.rules.failures).map_err(ApiError::TooMany)?;
        }
        let found = self.principal(headers).await;
        let is_failure = matches!(found, Err(ApiError::Unauthenticated(_) | ApiError::Forbidden(_)));
        if let Some(client) = client.filter(|_| is_failure) {
            // The last one that is free was looked at above; another request may have taken it since.
            let _ = self.failures.take(client, self.rules.failures);
            let remote_addr = client.to_string();
            info!(event = "api_authentication_failed", remote_addr, "a request did not show who it is of");
        }
        found
    }

    async fn principal(&self, headers: &HeaderMap) -> Result<Authenticated, ApiError> {
        match shown(headers, &self.rules.agent_prefix)? {
            Shown::Nothing if self.rules.is_required => Err(refused(
                "send a token: `Authorization: Bearer muster_...`; for the command line, `muster login`",
            )),
            Shown::Nothing => {
                self.check_origin(headers)?;
                Ok(Authenticated { principal: anonymous(self.home.clone()), quotas: Quotas::default() })
            }
            Shown::Token(text) => by_token(&self.store, &self.clock, &text).await,
            Shown::Signed(text) => match &self.people {
                Some(people) => by_issuer(people, &self.store, &self.clock, &text).await,
                None => Err(refused("tokens of an issuer are not taken: none is configured (oidc.issuer)")),
            },
        }
    }

    /// Where nobody has to show who they are, a web page in somebody's browser could ask in their place.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
        let Some(origin) = text(ORIGIN) else { return Ok(()) };
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        let is_own = text(HOST) == Some(host) && is_loopback(host);
        if is_own || self.rules.cors_origins.iter().any(|allowed| allowed == origin) {
            return Ok(());
        }
        Err(ApiError::Forbidden(format!("the web page {origin} may not ask (auth.api.cors_origins)")))
    }

    /// Writes a denied change in the audit log.
    async fn tell_denied(&self, operation: &Operation, principal: &Principal, remote: &str, path: &str) {
        let Principal { name, tenant, role } = principal;
        info!(event = "denied", %tenant, actor = name, %role, operation = operation.id, remote_addr = remote, "a request was denied");
        if !operation.is_change {
            return;
        }
        let caller = Caller {
            tenant: tenant.clone(),
            actor: name.clone(),
            role: *role,
            remote: remote.to_owned(),
            quotas: Quotas::default(),
        };
        let mut entry = caller.entry(operation.id, path, (self.clock)());
        entry.outcome = Outcome::Denied;
        if let Err(error) = self.store.append_audit(tenant, &entry).await {
            warn!(%error, %tenant, "a denial could not be written in the audit log");
        }
    }
}

/// What a tenant may ask a second; twice as much at once.
fn rate(quotas: &Quotas, configured: Rate) -> Rate {
    quotas
        .requests_per_second
        .map_or(configured, |per_second| Rate { per_second, burst: per_second.saturating_mul(2) })
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn routes(document: &OpenApi) -> BTreeMap<String, BTreeMap<&'static str, String>> {
    let of = |(path, item): (&String, &PathItem)| {
        let operations = methods(item).into_iter();
        let operations = operations.filter_map(|(method, operation)| Some((method, operation?)));
        (path.clone(), operations.collect())
    };
    document.paths.paths.iter().map(of).collect()
}

/// Names of operations by method.
fn methods(item: &PathItem) -> [(&'static str, Option<String>); 5] {
    [
        ("GET", &item.get),
        ("PUT", &item.put),
        ("POST", &item.post),
        ("PATCH", &item.patch),
        ("DELETE", &item.delete),
    ]
    .map(|(method, operation)| {
        (method, operation.as_ref().map(|operation| operation.operation_id.clone().unwrap_or_default()))
    })
}

/// The operation of a request: an answer where there is none.
fn find(
    routes: &BTreeMap<String, BTreeMap<&'static str, String>>,
    path: &str,
    method: &Method,
) -> Result<&'static Operation, ApiError> {
    let Some(methods) = routes.get(path) else { return Err(ApiError::NoRoute) };
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let Some(id) = methods.get(method.as_str()) else { return Err(ApiError::NoMethod) };
    access::operation(id).ok_or_else(|| {
        ApiError::Forbidden(format!("operation {id} is not in the table of operations: nobody may do it"))
    })
}

/// Lets a request in, with its [`Caller`], or answers it.
pub(crate) async fn stand(
    State(guard): State<Arc<Guard>>,
    Remote(remote): Remote,
    request: Request,
    next: Next,
) -> Response {
    let Some(path) = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()) else {
        return next.run(request).await;
    };
    if path == DOCUMENT {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let remote = remote.map(|remote| remote.ip());
    let admitted = match find(&guard.routes, &path, &parts.method) {
        Ok(operation) => guard.admit(operation, &parts, remote).await,
        Err(error) => Err(error),
    };
    match admitted {
        Ok(caller) => {
            if let Some(caller) = caller {
                let Caller { tenant, actor, role, remote, .. } = &caller;
                debug!(event = "admitted", %tenant, actor, %role, remote_addr = remote, "a request may be served");
                parts.extensions.insert(caller);
            }
            next.run(Request::from_parts(parts, body)).await
        }
        Err(error) => error.into_response(),
    }
}

fn named_tenant(headers: &HeaderMap) -> Result<Option<Tenant>, ApiError> {
    let Some(value) = headers.get(TENANT_HEADER) else { return Ok(None) };
    let name = value.to_str().map_err(|_| ApiError::BadRequest(format!("{TENANT_HEADER}: is not text")))?;
    let tenant = name.parse();
    tenant.map(Some).map_err(|error| ApiError::BadRequest(format!("{TENANT_HEADER}: {error}")))
}

/// Says of every operation in the document who may do it.
pub(crate) fn describe(document: &mut OpenApi) {
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(scheme));
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let row = operation.operation_id.as_deref().and_then(access::operation);
            let who = match row {
                Some(row) if row.is_public => "Everybody may do this, without a token.".to_owned(),
                Some(row) => format!("Needs role {}.", access::in_words(row.roles)),
                None => "Nobody may do this.".to_owned(),
            };
            if row.is_some_and(|row| !row.is_public) {
                let needed =
                    utoipa::openapi::security::SecurityRequirement::new("token", Vec::<String>::new());
                operation.security.get_or_insert_default().push(needed);
            }
            let about = operation.description.take().filter(|about| !about.is_empty());
            operation.description =
                Some(about.map_or_else(|| who.clone(), |about| format!("{about}\n\n{who}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_operation_of_the_document_is_in_the_table_and_the_other_way_round() {
        let routes = routes(&crate::openapi());
        let documented: BTreeSet<_> =
            routes.values().flat_map(|methods| methods.values().map(String::as_str)).collect();
        let table: BTreeSet<_> = access::OPERATIONS.iter().map(|operation| operation.id).collect();
        assert_eq!(documented, table);
    }

    #[test]
    fn an_operation_that_changes_something_is_not_a_get() {
        // They read, and what they read about is too large for a query.
        let asking_with_a_body = ["diffManifests", "previewConfig"];
        for (path, methods) in routes(&crate::openapi()) {
            for (method, id) in methods {
                let operation = access::operation(&id).unwrap();
                let is_change = method != "GET" && !asking_with_a_body.contains(&operation.id);
                assert_eq!(is_change, operation.is_change, "{method} {path} is {id}");
            }
        }
    }

    #[test]
    fn an_unknown_route_or_method_serves_nobody() {
        let routes = routes(&crate::openapi());
        let find = |path, method| find(&routes, path, &method);
        assert!(matches!(find("/api/v1/secret", Method::GET), Err(ApiError::NoRoute)));
        assert!(matches!(find("/api/v1/agents", Method::DELETE), Err(ApiError::NoMethod)));
        assert_eq!(find("/api/v1/agents", Method::HEAD).unwrap().id, "listAgents");
    }

    #[test]
    fn the_document_says_who_may_do_what() {
        let document = serde_json::to_string(&crate::openapi()).unwrap();
        assert!(document.contains("Needs role operator, admin or system."));
    }

    #[test]
    fn the_own_machine_is_known_by_name() {
        for (host, is) in [
            ("localhost:4321", true),
            ("127.0.0.1:1", true),
            ("[::1]:4321", true),
            ("evil.example:4321", false),
        ] {
            assert_eq!(is_loopback(host), is, "{host}");
        }
    }
}
