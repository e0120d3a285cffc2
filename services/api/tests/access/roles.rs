//! Every operation by every role, as the table of operations says.

use super::*;

#[tokio::test]
async fn every_role_may_do_what_the_table_says_and_nothing_else() {
    for operation in OPERATIONS {
        for role in Role::ALL {
            // Each on a tenant of its own: some of the operations remove what others need.
            let rig = Rig::new();
            let owned = rig.tenant("acme").await;
            let requests = requests(&owned);
            check_covered(&requests);
            let (method, path, body) = requests[operation.id].clone();
            let headers = [("authorization", format!("Bearer {}", owned.token(role)))];
            let response = rig.open("192.0.2.1:5000", method, &path, &headers, body).await;
            let status = response.status();
            let may = operation.is_public || operation.roles.contains(&role);
            let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
            assert_eq!(!refused, may, "{} by {role}: {status}", operation.id);
            assert!(
                !status.is_server_error() && status != StatusCode::NOT_FOUND,
                "{} by {role}: {status}",
                operation.id
            );
            if !may {
                let problem = read(response).await;
                assert_eq!(problem.headers["content-type"], "application/problem+json");
                assert!(problem.detail().contains(operation.id), "{}", problem.detail());
            }
        }
    }
}

#[tokio::test]
async fn nobody_is_served_without_a_token_and_no_agent_with_its_own() {
    let rig = Rig::new();
    let owned = rig.tenant("acme").await;
    for operation in OPERATIONS {
        let (method, path, body) = requests(&owned)[operation.id].clone();
        let send = async |headers: &[(&str, String)], from: &str| {
            read(rig.open(from, method.clone(), &path, headers, body.clone()).await).await
        };
        // From other addresses, since failed attempts of one are limited.
        let from = format!("192.0.2.{}:1", OPERATIONS.iter().position(|other| other == operation).unwrap());
        let nobody = send(&[], &from).await;
        let agent = send(&[("authorization", format!("Bearer opamp_{}", "a".repeat(32)))], &from).await;
        let unknown = send(&[("authorization", format!("Bearer muster_{}", "0".repeat(64)))], &from).await;
        if operation.is_public {
            assert!(nobody.status.is_success() && agent.status.is_success(), "{}", operation.id);
            continue;
        }
        assert_eq!(nobody.status, StatusCode::UNAUTHORIZED, "{}", operation.id);
        assert!(nobody.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
        assert_eq!(nobody.headers["content-type"], "application/problem+json");
        assert_eq!(agent.status, StatusCode::FORBIDDEN, "{}", operation.id);
        assert_eq!(unknown.status, StatusCode::UNAUTHORIZED, "{}", operation.id);
    }
}

#[tokio::test]
async fn a_denied_change_stands_in_the_audit_log() {
    let rig = Rig::new();
    let owned = rig.tenant("acme").await;
    let path = format!("/api/v1/agents/{}/labels", owned.uid);
    let denied = rig.call(Some(owned.token(Role::Viewer)), Method::PATCH, &path, Some("{}".to_owned())).await;
    assert_eq!(denied.status, StatusCode::FORBIDDEN);
    let found =
        rig.call(Some(owned.token(Role::Admin)), Method::GET, "/api/v1/audit?outcome=denied", None).await;
    let records = found.json()["items"].as_array().unwrap().clone();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["actor"], "acme-viewer");
    assert_eq!(records[0]["operation"], "labelAgent");
    assert_eq!(records[0]["target"], path);
    assert_eq!(records[0]["remote_addr"], "192.0.2.1");
}
