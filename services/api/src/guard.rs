//! The way in: finds out who asks, which operation and tenant it is about, and whether that may be.
//!
//! It looks the operation up by method and route in the OpenAPI document, and who may do it in
//! [`muster_domain::access`]. A route that the document does not have serves nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use muster_domain::access::{self, Decision, Operation, Principal, Role};
use muster_domain::ids::Tenant;
use tracing::debug;
use utoipa::openapi::{OpenApi, PathItem};

use crate::caller::{Caller, Remote};
use crate::problem::ApiError;

/// The OpenAPI document's own path, which it does not name.
pub(crate) const DOCUMENT: &str = "/api/v1/openapi.json";
/// Names the tenant that a request of role system is about.
pub(crate) const TENANT_HEADER: &str = "muster-tenant";

/// What stands before every route.
pub(crate) struct Guard {
    /// Operations by route and method.
    routes: BTreeMap<String, BTreeMap<&'static str, String>>,
    /// Who asks where nobody has to show who they are.
    anonymous: Principal,
}

impl Guard {
    /// Stands before the routes of this document.
    pub(crate) fn new(document: &OpenApi, tenant: Tenant) -> Self {
        let routes = document
            .paths
            .paths
            .iter()
            .map(|(path, item)| {
                let methods = methods(item).into_iter();
                let operations = methods.filter_map(|(method, operation)| Some((method, operation?)));
                (path.clone(), operations.collect())
            })
            .collect();
        let anonymous = Principal { name: "anonymous".to_owned(), tenant, role: Role::System };
        Self { routes, anonymous }
    }

    /// The operation of a request: an answer where there is none.
    fn operation(&self, path: &str, method: &Method) -> Result<&'static Operation, ApiError> {
        let Some(methods) = self.routes.get(path) else { return Err(ApiError::NoRoute) };
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let Some(id) = methods.get(method.as_str()) else { return Err(ApiError::NoMethod) };
        access::operation(id).ok_or_else(|| {
            ApiError::Forbidden(format!("operation {id} is not in the table of operations: nobody may do it"))
        })
    }
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

/// Lets a request in, with its [`Caller`], or answers it.
pub(crate) async fn stand(
    State(guard): State<Arc<Guard>>,
    Remote(remote): Remote,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(path) = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()) else {
        return next.run(request).await;
    };
    if path == DOCUMENT {
        return next.run(request).await;
    }
    match guard.admit(&path, &request, remote) {
        Ok(Some(caller)) => {
            let Caller { tenant, actor, role, remote } = &caller;
            debug!(event = "admitted", %tenant, actor, %role, remote_addr = remote, "a request may be served");
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Ok(None) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

impl Guard {
    /// Who asks; nobody for what is public.
    fn admit(
        &self,
        path: &str,
        request: &Request,
        remote: Option<std::net::SocketAddr>,
    ) -> Result<Option<Caller>, ApiError> {
        let operation = self.operation(path, request.method())?;
        if operation.is_public {
            return Ok(None);
        }
        let named = named_tenant(request.headers())?;
        let principal = &self.anonymous;
        match access::decide(principal, operation, named.as_ref()) {
            Decision::Allowed(tenant) => Ok(Some(Caller {
                tenant,
                actor: principal.name.clone(),
                role: principal.role,
                remote: remote.map(|remote| remote.to_string()).unwrap_or_default(),
            })),
            Decision::Denied(why) => Err(ApiError::Forbidden(why)),
        }
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
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let row = operation.operation_id.as_deref().and_then(access::operation);
            let who = match row {
                Some(row) if row.is_public => "Everybody may do this, without a token.".to_owned(),
                Some(row) => format!("Needs role {}.", access::in_words(row.roles)),
                None => "Nobody may do this.".to_owned(),
            };
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

    fn mk_guard() -> (Guard, OpenApi) {
        let document = crate::openapi();
        (Guard::new(&document, "default".parse().unwrap()), document)
    }

    #[test]
    fn every_operation_of_the_document_is_in_the_table_and_the_other_way_round() {
        let (guard, _) = mk_guard();
        let documented: BTreeSet<_> =
            guard.routes.values().flat_map(|methods| methods.values().map(String::as_str)).collect();
        let table: BTreeSet<_> = access::OPERATIONS.iter().map(|operation| operation.id).collect();
        assert_eq!(documented, table);
    }

    #[test]
    fn an_operation_that_changes_something_is_not_a_get() {
        let (guard, _) = mk_guard();
        for (path, methods) in &guard.routes {
            for (method, id) in methods {
                let operation = access::operation(id).unwrap();
                assert_eq!(*method != "GET", operation.is_change, "{method} {path} is {id}");
            }
        }
    }

    #[test]
    fn an_unknown_route_or_method_serves_nobody() {
        let (guard, _) = mk_guard();
        assert!(matches!(guard.operation("/api/v1/secret", &Method::GET), Err(ApiError::NoRoute)));
        assert!(matches!(guard.operation("/api/v1/agents", &Method::DELETE), Err(ApiError::NoMethod)));
        assert_eq!(guard.operation("/api/v1/agents", &Method::HEAD).unwrap().id, "listAgents");
    }

    #[test]
    fn the_document_says_who_may_do_what() {
        let document = serde_json::to_string(&crate::openapi()).unwrap();
        assert!(document.contains("Needs role operator, admin or system."));
    }
}
