//! Who may do what, of every operation of the document: by role, and by tenant.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod isolation;
mod roles;
mod rules;
mod tokens;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, Response, StatusCode};
use muster_adapters_memory::{MemoryBus, MemoryCredentials, MemoryOwnership, MemoryStore};
use muster_api::{Engines, KeySettings, Peer, Readiness, Rules, Settings};
use muster_domain::access::{OPERATIONS, Role};
use muster_domain::agent::Agent;
use muster_domain::audit::{Entry, Outcome};
use muster_domain::ids::{AgentKey, InstanceUid, Partition, Tenant, Timestamp, TokenId};
use muster_domain::tenant::Quotas;
use muster_domain::token::{self, Token};
use muster_ports::Random;
use muster_ports::access::{TenantStore as _, TokenStore as _};
use muster_ports::store::{AgentWrite, Commit, FoldStore as _};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use uuid::Uuid;

const NOW: Timestamp = Timestamp(1_790_000_000_000_000);
const MANIFESTS: &str = "apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: NAME-template, version: '1'}
spec:
  config: {receivers: {otlp: {}}}
---
apiVersion: opamp.io/v1
kind: ConfigAssignment
metadata: {name: NAME-assignment}
spec:
  template: {name: NAME-template}
  selector: {matchLabels: {team: NAME-team}}
  rollout: {strategy: NAME-strategy}
---
apiVersion: opamp.io/v1
kind: RolloutStrategy
metadata: {name: NAME-strategy}
spec:
  stages: [{name: all, percentage: 100}]
";

/// An api on engines in memory.
struct Rig {
    router: Router,
    store: Arc<MemoryStore>,
    clock: Arc<AtomicU64>,
}

/// An answer, its body read.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap_or_default().to_owned()
    }
}

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

fn entry() -> Entry {
    Entry {
        at: NOW,
        actor: "test".to_owned(),
        role: Role::System,
        remote: String::new(),
        operation: "test".to_owned(),
        target: String::new(),
        before: String::new(),
        after: String::new(),
        outcome: Outcome::Done,
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(Rules { is_required: true, ..Rules::default() })
    }

    fn with(rules: Rules) -> Self {
        let store = Arc::new(MemoryStore::new());
        let clock = Arc::new(AtomicU64::new(NOW.0));
        let now = Arc::clone(&clock);
        let engines = Engines {
            intent: store.clone(),
            fleet: store.clone(),
            components: store.clone(),
            commands: store.clone(),
            rollouts: store.clone(),
            access: store.clone(),
            people: None,
            ownership: Arc::new(MemoryOwnership::default()),
            bus: Arc::new(MemoryBus::default()),
            credentials: Arc::new(MemoryCredentials::default()),
            clock: Arc::new(move || Timestamp(now.load(Ordering::Relaxed))),
            random: Random::new(rand::random),
        };
        let keys = KeySettings::default();
        let settings = Settings {
            cell: "default".parse().unwrap(),
            tenant: tenant("default"),
            rules,
            keys,
            approval_required: false,
            channels: Default::default(),
        };
        let router = muster_api::router(settings, engines, Readiness::default(), prometheus::Registry::new());
        Self { router, store, clock }
    }

    fn pass(&self, time: Duration) {
        self.clock.fetch_add(u64::try_from(time.as_micros()).unwrap(), Ordering::Relaxed);
    }

    /// A tenant with something of every kind, whose names all hold the tenant's.
    async fn tenant(&self, name: &str) -> Owned {
        if name != "default" {
            self.store.create_tenant(&tenant(name), &Quotas::default(), NOW, &entry()).await.unwrap();
        }
        let key = AgentKey { tenant: tenant(name), uid: InstanceUid(Uuid::now_v7()) };
        let (cell, partition) = ("default".parse().unwrap(), Partition::of(&key));
        let row = self.store.partition(&cell, partition).await.unwrap();
        let commit = Commit {
            cell,
            partition,
            generation: row.generation,
            progress: (row.epoch, row.position, row.message),
            decided_on: BTreeMap::new(),
            agents: vec![AgentWrite {
                agent: Agent::new(key.clone(), NOW),
                session: true,
                state: true,
                effective_config: None,
            }],
            quarantined: Vec::new(),
            commands: Vec::new(),
            counts: Default::default(),
        };
        self.store.commit(commit).await.unwrap();
        let mut tokens = BTreeMap::new();
        for role in Role::ALL {
            tokens.insert(role, self.token(name, &format!("{name}-{role}"), role, 3600).await);
        }
        let mut owned = Owned {
            name: name.to_owned(),
            uid: key.uid,
            tokens,
            command: String::new(),
            key: String::new(),
            rollout: String::new(),
        };
        let admin = owned.tokens[&Role::Admin].0.clone();
        let manifests = MANIFESTS.replace("NAME", name);
        let applied = self.call(Some(&admin), Method::POST, "/api/v1/apply", Some(manifests)).await;
        assert_eq!(applied.status, StatusCode::OK, "{applied:?}");
        owned.rollout = applied.json()["rollouts"][0].as_str().unwrap().to_owned();
        let labels = json!({"team": format!("{name}-team")}).to_string();
        let path = format!("/api/v1/agents/{}/labels", owned.uid);
        let labelled = self.call(Some(&admin), Method::PATCH, &path, Some(labels)).await;
        assert_eq!(labelled.status, StatusCode::OK, "{labelled:?}");
        let path = format!("/api/v1/agents/{}/commands", owned.uid);
        let restart = json!({"action": "restart"}).to_string();
        let given = self.call(Some(&admin), Method::POST, &path, Some(restart)).await;
        owned.command = given.json()["id"].as_str().unwrap().to_owned();
        let key = json!({"name": format!("{name}-key")}).to_string();
        let made = self.call(Some(&admin), Method::POST, "/api/v1/keys", Some(key)).await;
        owned.key = made.json()["id"].as_str().unwrap().to_owned();
        owned
    }

    /// A token's text and id.
    async fn token(&self, of: &str, account: &str, role: Role, seconds: u64) -> (String, TokenId) {
        let text = token::text(&rand::random());
        let token = Token {
            id: TokenId(Uuid::now_v7()),
            tenant: tenant(of),
            account: account.to_owned(),
            role,
            digest: token::digest(&text),
            created_by: "test".to_owned(),
            created_at: NOW,
            expires_at: NOW.plus(Duration::from_secs(seconds)),
            revoked_at: None,
        };
        self.store.create_token(&token, &entry(), 1000).await.unwrap();
        (text, token.id)
    }

    async fn call(&self, token: Option<&str>, method: Method, path: &str, body: Option<String>) -> Answer {
        let headers: Vec<_> =
            token.map(|token| ("authorization", format!("Bearer {token}"))).into_iter().collect();
        self.send(method, path, &headers, body).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Option<String>,
    ) -> Answer {
        read(self.open("192.0.2.1:5000", method, path, headers, body).await).await
    }

    /// Sends a request from an address, and leaves the body of the answer.
    async fn open(
        &self,
        from: &str,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Option<String>,
    ) -> Response<Body> {
        let from: SocketAddr = from.parse().unwrap();
        let mut request = Request::builder().method(method).uri(path).extension(ConnectInfo(Peer(from)));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if path != "/api/v1/apply" {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(body.map_or_else(Body::empty, Body::from)).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }
}

async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(bytes.to_vec()).unwrap() }
}

/// What a tenant of a test has.
struct Owned {
    name: String,
    uid: InstanceUid,
    tokens: BTreeMap<Role, (String, TokenId)>,
    /// Id of a command.
    command: String,
    /// Id of a key of agents.
    key: String,
    /// Id of a rollout.
    rollout: String,
}

impl Owned {
    fn token(&self, role: Role) -> &str {
        &self.tokens[&role].0
    }
}

/// A request for each operation, about what this tenant has.
fn requests(of: &Owned) -> BTreeMap<&'static str, (Method, String, Option<String>)> {
    let (name, uid, command) = (&of.name, of.uid, &of.command);
    let agent = format!("/api/v1/agents/{uid}");
    let rollout = format!("/api/v1/rollouts/{}", of.rollout);
    let ask = |command: &str| (Method::POST, format!("{rollout}/{command}"), None);
    let token = of.tokens[&Role::Viewer].1;
    let restart = json!({"action": "restart"});
    let selected = json!({"selector": format!("team={name}-team"), "dry_run": true, "command": restart});
    let get = |path: String| (Method::GET, path, None);
    let send = |method: Method, path: String, body: Value| (method, path, Some(body.to_string()));
    BTreeMap::from([
        ("listAgents", get("/api/v1/agents".to_owned())),
        ("getAgent", get(agent.clone())),
        ("labelAgent", send(Method::PATCH, format!("{agent}/labels"), json!({"a": "b"}))),
        ("retryAgent", (Method::POST, format!("{agent}/retry"), None)),
        ("commandAgent", send(Method::POST, format!("{agent}/commands"), restart.clone())),
        ("commandAgents", send(Method::POST, "/api/v1/commands".to_owned(), selected)),
        ("listAgentCommands", get(format!("{agent}/commands"))),
        ("listCommands", get(format!("/api/v1/commands?ids={command}"))),
        ("getCommand", get(format!("/api/v1/commands/{command}"))),
        ("watchEvents", get(format!("/api/v1/events?agent={uid}"))),
        ("apply", (Method::POST, "/api/v1/apply".to_owned(), Some(MANIFESTS.replace("NAME", name)))),
        ("listConfigs", get("/api/v1/configs".to_owned())),
        ("getConfig", get(format!("/api/v1/configs/{name}-template"))),
        ("diffManifests", (Method::POST, "/api/v1/diff".to_owned(), Some(MANIFESTS.replace("NAME", name)))),
        ("listConfigVersions", get(format!("/api/v1/configs/{name}-template/history"))),
        ("diffConfigVersions", get(format!("/api/v1/configs/{name}-template/diff?from=1&to=1"))),
        ("deleteConfig", (Method::DELETE, format!("/api/v1/configs/{name}-template"), None)),
        ("deleteAssignment", (Method::DELETE, format!("/api/v1/assignments/{name}-assignment"), None)),
        ("listChanges", get("/api/v1/changes".to_owned())),
        ("explainAgent", get(format!("{agent}/explain"))),
        ("previewConfig", (Method::POST, format!("{agent}/preview"), Some(String::new()))),
        ("listAssignments", get("/api/v1/assignments".to_owned())),
        ("getAssignment", get(format!("/api/v1/assignments/{name}-assignment"))),
        ("listStrategies", get("/api/v1/strategies".to_owned())),
        ("getStrategy", get(format!("/api/v1/strategies/{name}-strategy"))),
        ("listRollouts", get("/api/v1/rollouts".to_owned())),
        ("getRollout", get(rollout.clone())),
        ("listRolloutAgents", get(format!("{rollout}/agents"))),
        ("approveRollout", ask("approve")),
        ("pauseRollout", ask("pause")),
        ("resumeRollout", ask("resume")),
        ("promoteRollout", ask("promote")),
        ("abortRollout", ask("abort")),
        ("rollBackRollout", ask("rollback")),
        ("whoAmI", get("/api/v1/whoami".to_owned())),
        ("listTokens", get("/api/v1/tokens".to_owned())),
        (
            "createToken",
            send(Method::POST, "/api/v1/tokens".to_owned(), json!({"account": "x", "role": "viewer"})),
        ),
        ("revokeToken", (Method::DELETE, format!("/api/v1/tokens/{token}"), None)),
        ("revokeAccount", (Method::DELETE, format!("/api/v1/tokens?account={name}-approver"), None)),
        ("listAudit", get("/api/v1/audit".to_owned())),
        ("listTenants", get("/api/v1/tenants".to_owned())),
        ("getTenant", get(format!("/api/v1/tenants/{name}"))),
        (
            "createTenant",
            send(Method::POST, "/api/v1/tenants".to_owned(), json!({"name": format!("{name}-2")})),
        ),
        ("limitTenant", send(Method::PUT, format!("/api/v1/tenants/{name}/quotas"), json!({"quotas": {}}))),
        ("removeTenant", (Method::DELETE, format!("/api/v1/tenants/{name}"), None)),
        ("createKey", send(Method::POST, "/api/v1/keys".to_owned(), json!({"name": "x"}))),
        ("listKeys", get("/api/v1/keys".to_owned())),
        ("getKey", get(format!("/api/v1/keys/{}", of.key))),
        ("revokeKey", (Method::POST, format!("/api/v1/keys/{}/revoke", of.key), None)),
        ("rotateKey", send(Method::POST, format!("/api/v1/keys/{}/rotate", of.key), json!({}))),
        (
            "revokeCredential",
            send(Method::POST, "/api/v1/credentials/revoke".to_owned(), json!({"kind": "jwt", "name": "x"})),
        ),
        ("health", get("/health".to_owned())),
        ("ready", get("/ready".to_owned())),
        ("metrics", get("/metrics".to_owned())),
    ])
}

/// The tests would say nothing of an operation that they have no request for.
fn check_covered(requests: &BTreeMap<&'static str, (Method, String, Option<String>)>) {
    for operation in OPERATIONS {
        assert!(
            requests.contains_key(operation.id),
            "operation {} has no request here: add one",
            operation.id
        );
    }
    assert_eq!(requests.len(), OPERATIONS.len(), "there are requests for operations that are none");
}
