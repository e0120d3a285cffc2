//! From where, how often, and from which web pages.

use muster_domain::budget::Rate;

use super::*;

async fn from(rig: &Rig, address: &str, headers: &[(&str, String)]) -> Answer {
    read(rig.open(address, Method::GET, "/api/v1/whoami", headers, None).await).await
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

#[tokio::test]
async fn without_authentication_everybody_is_system_of_the_default_tenant() {
    let rig = Rig::with(Rules::default());
    let who = from(&rig, "127.0.0.1:1", &[]).await;
    assert_eq!(who.json(), json!({"account": "anonymous", "tenant": "default", "role": "system"}));
    let wrong = from(&rig, "127.0.0.1:1", &[bearer(&format!("muster_{}", "0".repeat(64)))]).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED, "what is shown counts, also where nothing must be");
    // A web page in somebody's browser must not ask in their place.
    for origin in ["http://evil.example", "null", "http://evil.example:4321"] {
        let page = [("origin", origin.to_owned()), ("host", "127.0.0.1:4321".to_owned())];
        assert_eq!(from(&rig, "127.0.0.1:1", &page).await.status, StatusCode::FORBIDDEN, "{origin}");
    }
    let rebound =
        [("origin", "http://evil.example:4321".to_owned()), ("host", "evil.example:4321".to_owned())];
    assert_eq!(from(&rig, "127.0.0.1:1", &rebound).await.status, StatusCode::FORBIDDEN);
    let own = [("origin", "http://127.0.0.1:4321".to_owned()), ("host", "127.0.0.1:4321".to_owned())];
    assert_eq!(from(&rig, "127.0.0.1:1", &own).await.status, StatusCode::OK);
}

#[tokio::test]
async fn requests_are_taken_from_allowed_networks_only() {
    let rules = Rules {
        is_required: true,
        allowed_networks: vec!["203.0.113.0/24".parse().unwrap()],
        trusted_proxies: vec!["10.0.0.1".parse().unwrap()],
        ..Rules::default()
    };
    let rig = Rig::with(rules);
    let (token, _) = rig.token("default", "ana", Role::Viewer, 60).await;
    let forwarded = |by: &str| [bearer(&token), ("x-forwarded-for", by.to_owned())];
    assert_eq!(from(&rig, "203.0.113.7:1", &[bearer(&token)]).await.status, StatusCode::OK);
    assert_eq!(from(&rig, "198.51.100.7:1", &[bearer(&token)]).await.status, StatusCode::FORBIDDEN);
    assert_eq!(from(&rig, "10.0.0.1:1", &forwarded("203.0.113.7")).await.status, StatusCode::OK);
    assert_eq!(from(&rig, "10.0.0.1:1", &forwarded("198.51.100.7")).await.status, StatusCode::FORBIDDEN);
    let forged = from(&rig, "198.51.100.7:1", &forwarded("203.0.113.7")).await;
    assert_eq!(forged.status, StatusCode::FORBIDDEN, "an address that is no proxy says where it is from");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_asks_so_often_and_is_told_when_to_come_back() {
    let rate = Rate { per_second: 1, burst: 3 };
    let rig = Rig::with(Rules { is_required: true, requests: rate, ..Rules::default() });
    let (token, _) = rig.token("default", "ana", Role::Viewer, 60).await;
    let (same_tenant, _) = rig.token("default", "ben", Role::Viewer, 60).await;
    for _ in 0..3 {
        assert_eq!(from(&rig, "192.0.2.1:1", &[bearer(&token)]).await.status, StatusCode::OK);
    }
    let refused = from(&rig, "192.0.2.2:1", &[bearer(&same_tenant)]).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.headers["content-type"], "application/problem+json");
    let quotas = Quotas { requests_per_second: Some(10), ..Quotas::default() };
    rig.store.create_tenant(&tenant("acme"), &quotas, NOW, &entry()).await.unwrap();
    let (other, _) = rig.token("acme", "eve", Role::Viewer, 60).await;
    for _ in 0..20 {
        assert_eq!(
            from(&rig, "192.0.2.1:1", &[bearer(&other)]).await.status,
            StatusCode::OK,
            "its own quota"
        );
    }
    assert_eq!(from(&rig, "192.0.2.1:1", &[bearer(&other)]).await.status, StatusCode::TOO_MANY_REQUESTS);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(from(&rig, "192.0.2.1:1", &[bearer(&token)]).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn failed_attempts_of_an_address_are_limited() {
    let rig = Rig::with(Rules {
        is_required: true,
        failures: Rate { per_second: 1, burst: 3 },
        ..Rules::default()
    });
    let (token, _) = rig.token("default", "ana", Role::Viewer, 60).await;
    let wrong = bearer(&format!("muster_{}", "0".repeat(64)));
    for _ in 0..3 {
        assert_eq!(
            from(&rig, "192.0.2.1:1", std::slice::from_ref(&wrong)).await.status,
            StatusCode::UNAUTHORIZED
        );
    }
    let right = from(&rig, "192.0.2.1:2", &[bearer(&token)]).await;
    assert_eq!(right.status, StatusCode::TOO_MANY_REQUESTS, "what it shows is not looked at");
    assert_eq!(from(&rig, "192.0.2.9:1", &[bearer(&token)]).await.status, StatusCode::OK, "another address");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(from(&rig, "192.0.2.1:1", &[bearer(&token)]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn web_pages_of_other_origins_are_told_nothing_unless_they_are_named() {
    let preflight = async |rules: Rules| {
        let rig = Rig::with(rules);
        let headers = [
            ("origin", "https://console.example".to_owned()),
            ("access-control-request-method", "GET".to_owned()),
            ("access-control-request-headers", "authorization".to_owned()),
        ];
        rig.send(Method::OPTIONS, "/api/v1/agents", &headers, None).await
    };
    let closed = preflight(Rules { is_required: true, ..Rules::default() }).await;
    assert!(closed.headers.get("access-control-allow-origin").is_none(), "{closed:?}");
    let origins = vec!["https://console.example".to_owned()];
    let open = preflight(Rules { is_required: true, cors_origins: origins, ..Rules::default() }).await;
    assert_eq!(open.headers["access-control-allow-origin"], "https://console.example");
}

#[tokio::test]
async fn manifests_are_as_large_as_the_tenant_may_have_them() {
    let rig = Rig::new();
    let quotas = Quotas { config_bytes: Some(100), ..Quotas::default() };
    rig.store.create_tenant(&tenant("acme"), &quotas, NOW, &entry()).await.unwrap();
    let (token, _) = rig.token("acme", "ana", Role::Operator, 60).await;
    let manifests = MANIFESTS.replace("NAME", "acme");
    let refused = rig.call(Some(&token), Method::POST, "/api/v1/apply", Some(manifests)).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(refused.detail().contains("config_bytes"), "{}", refused.detail());
}
