//! Tokens: made, shown once, expired, revoked.

use super::*;

#[tokio::test]
async fn a_token_works_until_it_is_revoked() {
    let rig = Rig::new();
    let owned = rig.tenant("acme").await;
    let admin = owned.token(Role::Admin);
    let body = json!({"account": "ci", "role": "operator", "expires_in_seconds": 3600}).to_string();
    let made = rig.call(Some(admin), Method::POST, "/api/v1/tokens", Some(body)).await;
    assert_eq!(made.status, StatusCode::CREATED);
    assert_eq!(made.headers["cache-control"], "no-store");
    let made = made.json();
    let text = made["token"].as_str().unwrap();
    assert!(text.starts_with("muster_"));
    let who = rig.call(Some(text), Method::GET, "/api/v1/whoami", None).await;
    assert_eq!(who.json(), json!({"account": "ci", "tenant": "acme", "role": "operator"}));

    let list = rig.call(Some(admin), Method::GET, "/api/v1/tokens", None).await;
    assert!(!list.body.contains(text), "a token's text is shown again");
    assert!(list.body.contains(made["id"].as_str().unwrap()));
    let log = rig.call(Some(admin), Method::GET, "/api/v1/audit?operation=createToken", None).await;
    assert!(!log.body.contains(text) && log.body.contains("acme-admin"), "{}", log.body);

    let path = format!("/api/v1/tokens/{}", made["id"].as_str().unwrap());
    assert_eq!(rig.call(Some(admin), Method::DELETE, &path, None).await.json()["state"], "revoked");
    let refused = rig.call(Some(text), Method::GET, "/api/v1/whoami", None).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(refused.detail().contains("revoked"), "{}", refused.detail());
    assert_eq!(
        rig.call(Some(admin), Method::DELETE, &path, None).await.status,
        StatusCode::NOT_FOUND,
        "again"
    );
}

#[tokio::test]
async fn a_token_expires() {
    let rig = Rig::new();
    let (text, _) = rig.token("default", "short", Role::Viewer, 60).await;
    assert_eq!(rig.call(Some(&text), Method::GET, "/api/v1/whoami", None).await.status, StatusCode::OK);
    rig.pass(Duration::from_secs(60));
    let refused = rig.call(Some(&text), Method::GET, "/api/v1/whoami", None).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(refused.detail().contains("expired"), "{}", refused.detail());
}

#[tokio::test]
async fn nobody_gives_or_takes_more_than_they_have() {
    let rig = Rig::new();
    let owned = rig.tenant("acme").await;
    let make = async |token: &str, role: &str| {
        let body = json!({"account": "x", "role": role}).to_string();
        rig.call(Some(token), Method::POST, "/api/v1/tokens", Some(body)).await.status
    };
    assert_eq!(make(owned.token(Role::Admin), "admin").await, StatusCode::CREATED);
    assert_eq!(make(owned.token(Role::Admin), "system").await, StatusCode::FORBIDDEN);
    assert_eq!(make(owned.token(Role::System), "system").await, StatusCode::CREATED);
    let path = format!("/api/v1/tokens/{}", owned.tokens[&Role::System].1);
    let by_admin = rig.call(Some(owned.token(Role::Admin)), Method::DELETE, &path, None).await;
    assert_eq!(by_admin.status, StatusCode::NOT_FOUND);
    let account = "/api/v1/tokens?account=acme-system";
    let by_admin = rig.call(Some(owned.token(Role::Admin)), Method::DELETE, account, None).await;
    assert_eq!(by_admin.json()["items"], json!([]));
    let still = rig.call(Some(owned.token(Role::System)), Method::GET, "/api/v1/whoami", None).await;
    assert_eq!(still.status, StatusCode::OK);
}

#[tokio::test]
async fn what_is_wrong_with_a_new_token_names_its_field() {
    let rig = Rig::new();
    let owned = rig.tenant("acme").await;
    for (body, field) in [
        (json!({"account": "", "role": "viewer"}), "account: "),
        (json!({"account": "a\nb", "role": "viewer"}), "account: "),
        (json!({"account": "a", "role": "root"}), "role: "),
        (json!({"account": "a", "role": "viewer", "expires_in_seconds": 1}), "expires_in_seconds: "),
        (json!({"account": "a", "role": "viewer", "expires": 1}), "expires"),
    ] {
        let refused = rig
            .call(Some(owned.token(Role::Admin)), Method::POST, "/api/v1/tokens", Some(body.to_string()))
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(refused.detail().contains(field), "{}", refused.detail());
    }
}

#[tokio::test]
async fn the_chain_of_what_the_api_did_is_whole() {
    use muster_domain::audit::{Head, verify, verify_head};
    use muster_ports::access::{AuditFilter, AuditPage, AuditStore as _};
    let rig = Rig::new();
    let _ = rig.tenant("acme").await;
    let records =
        rig.store.audit(&tenant("acme"), &AuditFilter::default(), AuditPage::After(0), 1000).await.unwrap();
    let operations: Vec<_> = records.iter().map(|record| record.entry.operation.as_str()).collect();
    assert_eq!(operations[operations.len() - 3..], ["apply", "labelAgent", "commandAgent"]);
    let head = verify(&tenant("acme"), Head::EMPTY, &records).unwrap();
    verify_head(head, rig.store.audit_head(&tenant("acme")).await.unwrap()).unwrap();
    let apply = &records[records.len() - 3].entry;
    assert!(apply.after.contains("acme-assignment") && apply.target.contains("configs/acme-template"));
}
