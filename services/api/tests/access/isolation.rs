//! Every operation with another tenant's token and ids: nothing of the one is seen or changed by the other.

use super::*;

/// What is answered to a request for what another tenant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// As if it were not there.
    NotThere,
    /// What the asker's own tenant has, which is not that.
    OwnOnly,
    /// It needs role system.
    Denied,
    /// It has no tenant.
    Public,
}

fn expected(operation: &str) -> Expected {
    match operation {
        "getAgent" | "labelAgent" | "retryAgent" | "commandAgent" | "getCommand" | "getConfig"
        | "getAssignment" | "revokeToken" | "listConfigVersions" | "diffConfigVersions" | "deleteConfig"
        | "deleteAssignment" | "explainAgent" | "previewConfig" | "getKey" | "revokeKey" | "rotateKey"
        | "getStrategy" | "getRollout" | "listRolloutAgents" | "approveRollout" | "pauseRollout"
        | "resumeRollout" | "promoteRollout" | "abortRollout" | "rollBackRollout" => Expected::NotThere,
        "listAgents" | "commandAgents" | "listAgentCommands" | "listCommands" | "watchEvents" | "apply"
        | "listConfigs" | "listAssignments" | "whoAmI" | "listTokens" | "createToken" | "revokeAccount"
        | "listAudit" | "diffManifests" | "listChanges" | "createKey" | "listKeys" | "revokeCredential"
        | "listStrategies" | "listRollouts" => Expected::OwnOnly,
        "listTenants" | "getTenant" | "createTenant" | "limitTenant" | "removeTenant" => Expected::Denied,
        "health" | "ready" | "metrics" => Expected::Public,
        other => panic!("what is answered to {other} for another tenant's ids? say it here"),
    }
}

/// All that a tenant has, as its admin sees it.
async fn everything(rig: &Rig, owned: &Owned) -> Vec<String> {
    let mut all = Vec::new();
    let uid = owned.uid;
    for path in [
        "/api/v1/agents".to_owned(),
        format!("/api/v1/agents/{uid}"),
        format!("/api/v1/agents/{uid}/commands"),
        "/api/v1/configs".to_owned(),
        "/api/v1/assignments".to_owned(),
        "/api/v1/strategies".to_owned(),
        "/api/v1/rollouts".to_owned(),
        "/api/v1/tokens".to_owned(),
        "/api/v1/keys".to_owned(),
        "/api/v1/audit".to_owned(),
    ] {
        let answer = rig.call(Some(owned.token(Role::Admin)), Method::GET, &path, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        all.push(answer.body);
    }
    all
}

#[tokio::test]
async fn no_operation_shows_or_changes_what_another_tenant_has() {
    for operation in OPERATIONS {
        let rig = Rig::new();
        let (victim, other) = (rig.tenant("victim").await, rig.tenant("other").await);
        let requests = requests(&victim);
        check_covered(&requests);
        let (method, path, body) = requests[operation.id].clone();
        let before = everything(&rig, &victim).await;
        for role in [Role::Admin, Role::Operator] {
            let token = other.token(role);
            let (method, body) = (method.clone(), body.clone());
            let headers = [("authorization", format!("Bearer {token}"))];
            let response = rig.open("192.0.2.1:5000", method, &path, &headers, body).await;
            let status = response.status();
            let is_allowed = operation.is_public || operation.roles.contains(&role);
            match expected(operation.id) {
                _ if !is_allowed => assert_eq!(status, StatusCode::FORBIDDEN, "{}", operation.id),
                Expected::NotThere => assert_eq!(status, StatusCode::NOT_FOUND, "{}", operation.id),
                Expected::OwnOnly => assert!(status.is_success(), "{}: {status}", operation.id),
                Expected::Denied => assert_eq!(status, StatusCode::FORBIDDEN, "{}", operation.id),
                Expected::Public => assert!(status.is_success(), "{}: {status}", operation.id),
            }
            // A stream goes on for ever; what it is of is looked at apart.
            let says_what_was_asked = ["apply", "commandAgents", "diffManifests"].contains(&operation.id);
            if operation.id != "watchEvents" && status.is_success() && !says_what_was_asked {
                let body = read(response).await.body;
                assert!(!body.contains("victim"), "{} shows {body}", operation.id);
                assert!(!body.contains(&victim.uid.to_string()), "{} shows {body}", operation.id);
            }
        }
        assert_eq!(
            everything(&rig, &victim).await,
            before,
            "{} changed what another tenant has",
            operation.id
        );
    }
}

#[tokio::test]
async fn a_selector_and_the_audit_log_reach_the_own_tenant_only() {
    let rig = Rig::new();
    let (victim, other) = (rig.tenant("victim").await, rig.tenant("other").await);
    let admin = other.token(Role::Admin);
    let body = json!({"selector": "", "dry_run": true, "command": {"action": "restart"}}).to_string();
    let counted = rig.call(Some(admin), Method::POST, "/api/v1/commands", Some(body)).await;
    assert_eq!(counted.json()["count"], 1);
    assert_eq!(counted.json()["agents"][0]["instance_uid"], other.uid.to_string());
    let log = rig.call(Some(admin), Method::GET, "/api/v1/audit", None).await;
    assert!(log.body.contains("other-admin") && !log.body.contains("victim-admin"), "{}", log.body);
    assert_eq!(log.json()["tenant"], "other");
    let _ = victim;
}

#[tokio::test]
async fn events_are_of_the_own_tenant() {
    use muster_ports::bus::Subject;
    // The subject that a listener is given is its caller's: no query names another one.
    let rig = Rig::new();
    let other = rig.tenant("other").await;
    let named = [
        ("authorization", format!("Bearer {}", other.token(Role::Admin))),
        ("muster-tenant", "default".to_owned()),
    ];
    let refused = rig.send(Method::GET, "/api/v1/events", &named, None).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let subject = Subject::Events("default".parse().unwrap(), tenant("other"));
    assert_ne!(subject, Subject::Events("default".parse().unwrap(), tenant("default")));
}

#[tokio::test]
async fn only_role_system_names_a_tenant_and_only_one_that_is_there() {
    let rig = Rig::new();
    let (victim, other) = (rig.tenant("victim").await, rig.tenant("other").await);
    let agents = async |token: &str, named: &str| {
        let headers = [("authorization", format!("Bearer {token}")), ("muster-tenant", named.to_owned())];
        rig.send(Method::GET, "/api/v1/agents", &headers, None).await
    };
    for role in [Role::Viewer, Role::Operator, Role::Approver, Role::Admin] {
        assert_eq!(agents(other.token(role), "victim").await.status, StatusCode::FORBIDDEN);
        // A tenant that is not there is answered the same: names are not found out by trying.
        assert_eq!(agents(other.token(role), "nobody").await.status, StatusCode::FORBIDDEN);
        assert_eq!(agents(other.token(role), "other").await.status, StatusCode::OK);
    }
    let seen = agents(other.token(Role::System), "victim").await;
    assert!(seen.body.contains(&victim.uid.to_string()), "{}", seen.body);
    assert_eq!(agents(other.token(Role::System), "nobody").await.status, StatusCode::NOT_FOUND);
    assert_eq!(agents(other.token(Role::System), "No Name").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_cursor_is_of_its_tenant_and_query() {
    let rig = Rig::new();
    let (one, other) = (rig.tenant("one").await, rig.tenant("other").await);
    let get = async |token: &str, path: &str| rig.call(Some(token), Method::GET, path, None).await;
    for path in ["/api/v1/tokens?limit=1", "/api/v1/audit?limit=1", "/api/v1/audit?limit=1&first=oldest"] {
        let page = get(one.token(Role::Admin), path).await;
        let cursor = page.json()["next_cursor"].as_str().unwrap().to_owned();
        let next = format!("{path}&cursor={cursor}");
        assert_eq!(get(one.token(Role::Admin), &next).await.status, StatusCode::OK, "{path}");
        assert_eq!(get(other.token(Role::Admin), &next).await.status, StatusCode::BAD_REQUEST, "{path}");
    }
    let page = get(one.token(Role::Admin), "/api/v1/audit?limit=1").await;
    let cursor = page.json()["next_cursor"].as_str().unwrap().to_owned();
    let other_query = format!("/api/v1/audit?limit=1&actor=x&cursor={cursor}");
    assert_eq!(get(one.token(Role::Admin), &other_query).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_removed_tenant_is_not_there_but_its_audit_log_is() {
    let rig = Rig::new();
    let (gone, home) = (rig.tenant("gone").await, rig.tenant("home").await);
    let system = home.token(Role::System);
    let removed = rig.call(Some(system), Method::DELETE, "/api/v1/tenants/gone", None).await;
    assert_eq!(removed.status, StatusCode::OK, "{removed:?}");
    let refused = rig.call(Some(gone.token(Role::Admin)), Method::GET, "/api/v1/agents", None).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let named = [("authorization", format!("Bearer {system}")), ("muster-tenant", "gone".to_owned())];
    let agents = rig.send(Method::GET, "/api/v1/agents", &named, None).await;
    assert_eq!(agents.status, StatusCode::NOT_FOUND);
    let log = rig.send(Method::GET, "/api/v1/audit", &named, None).await;
    assert_eq!(log.json()["items"][0]["operation"], "removeTenant");
    let again = json!({"name": "gone"}).to_string();
    let again = rig.call(Some(system), Method::POST, "/api/v1/tenants", Some(again)).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let own = rig.call(Some(system), Method::DELETE, "/api/v1/tenants/default", None).await;
    assert_eq!(own.status, StatusCode::CONFLICT);
}
