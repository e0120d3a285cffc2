//! The api role: REST for people and platform teams, on `/api/v1/`.
//!
//! It writes intent to the store and wakes control; it never talks to agents.

mod agents;
mod apply;
mod assignments;
mod audit;
mod authenticate;
mod caller;
mod change;
mod commands;
mod configs;
mod cursor;
mod diff;
mod events;
mod explain;
mod guard;
mod history;
mod impact;
mod keys;
mod labels;
mod limits;
mod listener;
mod problem;
mod removal;
mod retry;
mod rollouts;
mod strategies;
mod system;
mod tenants;
mod tokens;
mod views;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use muster_domain::ids::{Cell, Tenant};
use muster_ports::access::AccessStore;
use muster_ports::bus::{Bus, Subject};
use muster_ports::credentials::CredentialStore;
use muster_ports::ownership::Ownership;
use muster_ports::rollouts::RolloutStore;
use muster_ports::store::{CommandStore, ComponentStore, FleetStore, IntentStore};
use muster_ports::{Clock, Random};
use muster_tls::Listener;
use prometheus::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tracing::{debug, info, warn};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use crate::authenticate::People;
use crate::guard::Guard;
pub use crate::guard::Rules;
pub use crate::keys::KeySettings;
pub use crate::listener::Peer;
pub use crate::system::Readiness;
use crate::system::System;

/// Largest request body, in bytes.
pub const MAX_BODY: usize = 4 << 20;
/// Longest time a request may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// What an api is told once, at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Region that is woken after a change.
    pub cell: Cell,
    /// Tenant of requests without a credential.
    pub tenant: Tenant,
    /// Who may ask, from where, and how often.
    pub rules: Rules,
    /// How agents' keys are made.
    pub keys: KeySettings,
    /// Changes that roll out by a strategy wait for another person's approval.
    pub approval_required: bool,
    /// Channels of notifications that are configured.
    pub channels: BTreeSet<String>,
}

/// The engines that an api works on.
#[derive(Clone)]
pub struct Engines {
    /// What operators want.
    pub intent: Arc<dyn IntentStore>,
    /// What is known of agents.
    pub fleet: Arc<dyn FleetStore>,
    /// Components that agents can be configured with.
    pub components: Arc<dyn ComponentStore>,
    /// Changes on their way to agents.
    pub rollouts: Arc<dyn RolloutStore>,
    /// Orders to agents.
    pub commands: Arc<dyn CommandStore>,
    /// Who may do what: tenants, tokens, the audit log.
    pub access: Arc<dyn AccessStore>,
    /// Agents' credentials.
    pub credentials: Arc<dyn CredentialStore>,
    /// Who issues tokens of people, if anybody does.
    pub people: Option<Arc<People>>,
    /// When agents were heard last.
    pub ownership: Arc<dyn Ownership>,
    /// Wakes control; what happens to agents.
    pub bus: Arc<dyn Bus>,
    /// The time.
    pub clock: Clock,
    /// Random bits, for keys and ids.
    pub random: Random,
}

/// What every request handler shares.
struct Shared {
    settings: Settings,
    engines: Engines,
    /// A place for each listener of events.
    listeners: Arc<Semaphore>,
}

impl Shared {
    /// Tells control that intent has changed. A lost wake-up costs time, never correctness.
    async fn wake(&self) {
        let subject = Subject::Wake(self.settings.cell.clone());
        if let Err(error) = self.engines.bus.publish(&subject, Default::default()).await {
            warn!(%error, "control was not woken; it looks by itself within seconds");
        }
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Muster",
        description = "Control plane for fleets of telemetry agents that speak OpAMP.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "agents", description = "The fleet: what agents report and what they should run."),
        (name = "commands", description = "Orders to agents, each sent at most once."),
        (name = "configuration", description = "Templates, assignments, and applying manifests."),
        (name = "access", description = "Tokens, tenants and the audit log."),
        (name = "keys", description = "How agents show who they are."),
        (name = "rollouts", description = "Changes that reach agents in stages."),
        (name = "system", description = "Health of this process.")
    )
)]
struct Documentation;

/// All routes of the API, and those of [`system_router`].
pub fn router(settings: Settings, engines: Engines, readiness: Readiness, metrics: Registry) -> Router {
    let listeners = Arc::new(Semaphore::new(events::MAX_LISTENERS));
    let shared = Arc::new(Shared { settings, engines, listeners });
    let (system, _) = system_routes(readiness, metrics).split_for_parts();
    let (router, _) = api_routes().split_for_parts();
    let document = openapi();
    let Settings { tenant, rules, .. } = shared.settings.clone();
    let cors = cors(&rules);
    let guard = Arc::new(Guard::new(&document, tenant, rules, &shared.engines));
    router
        .route(
            guard::DOCUMENT,
            axum::routing::get(move || {
                let document = document.clone();
                async move { axum::Json(document) }
            }),
        )
        .with_state(shared)
        .merge(system)
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(middleware::from_fn_with_state(guard, guard::stand))
        .layer(cors)
        .layer(middleware::from_fn(deadline))
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// What web pages of other origins may ask: nothing, unless they are named.
fn cors(rules: &Rules) -> CorsLayer {
    let origins: Vec<HeaderValue> =
        rules.cors_origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()).collect();
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let methods = [Method::GET, Method::PUT, Method::POST, Method::PATCH, Method::DELETE];
    let headers = [AUTHORIZATION, CONTENT_TYPE, HeaderName::from_static(guard::TENANT_HEADER)];
    CorsLayer::new().allow_origin(origins).allow_methods(methods).allow_headers(headers)
}

/// The document that describes every operation.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let (_, mut document) = api_routes().split_for_parts();
    let (_, system) = system_routes(Readiness::default(), Registry::new()).split_for_parts();
    document.merge(system);
    guard::describe(&mut document);
    document
}

fn api_routes() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::with_openapi(Documentation::openapi())
        .routes(routes!(agents::list))
        .routes(routes!(agents::get))
        .routes(routes!(labels::patch))
        .routes(routes!(retry::post))
        .routes(routes!(commands::give, commands::latest))
        .routes(routes!(commands::give_many, commands::list))
        .routes(routes!(commands::get))
        .routes(routes!(events::watch))
        .routes(routes!(apply::apply))
        .routes(routes!(apply::compare))
        .routes(routes!(configs::list))
        .routes(routes!(configs::get, removal::template))
        .routes(routes!(history::versions))
        .routes(routes!(history::compare))
        .routes(routes!(history::changes))
        .routes(routes!(assignments::list))
        .routes(routes!(assignments::get, removal::assignment))
        .routes(routes!(explain::explain))
        .routes(routes!(explain::preview))
        .routes(routes!(tokens::who))
        .routes(routes!(tokens::create, tokens::list, tokens::revoke_account))
        .routes(routes!(tokens::revoke))
        .routes(routes!(audit::list))
        .routes(routes!(tenants::create, tenants::list))
        .routes(routes!(tenants::get, tenants::remove))
        .routes(routes!(tenants::limit))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::get))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(keys::revoke_named))
        .routes(routes!(strategies::list))
        .routes(routes!(strategies::get))
        .routes(routes!(rollouts::list))
        .routes(routes!(rollouts::get))
        .routes(routes!(rollouts::agents))
        .routes(routes!(rollouts::approve))
        .routes(routes!(rollouts::pause))
        .routes(routes!(rollouts::resume))
        .routes(routes!(rollouts::promote))
        .routes(routes!(rollouts::abort))
        .routes(routes!(rollouts::rollback))
}

/// `/health`, `/ready` and `/metrics`, for a process without the api role.
pub fn system_router(readiness: Readiness, metrics: Registry) -> Router {
    let (router, _) = system_routes(readiness, metrics).split_for_parts();
    router.fallback(problem::not_found)
}

fn system_routes(readiness: Readiness, metrics: Registry) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(system::health))
        .routes(routes!(system::ready))
        .routes(routes!(system::metrics))
        .with_state(System { readiness, metrics })
}

/// Routes of the metrics port: `/metrics` alone.
pub fn metrics_router(registry: Registry) -> Router {
    Router::new().route(
        "/metrics",
        axum::routing::get(move || {
            let registry = registry.clone();
            async move { system::render(&registry) }
        }),
    )
}

/// Serves a router on a listener until `stop` is cancelled and open requests are answered. Streams of
/// events end then.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    name: &'static str,
    router: Router,
    listener: impl Into<Listener>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = listener::Accepting(listener.into());
    info!(address = %listener.0.local_addr()?, "{name} is serving");
    let router = router.layer(Extension(events::Stopping(stop.clone())));
    let service = router.into_make_service_with_connect_info::<listener::Peer>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Ends requests that take too long, and logs each.
async fn deadline(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = std::time::Instant::now();
    let response = match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => problem::timed_out(),
    };
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    debug!(event = "request", %method, path, status = response.status().as_u16(), duration_ms, "answered a request");
    response
}
