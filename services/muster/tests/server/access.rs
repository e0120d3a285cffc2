//! Tokens, tenants and the audit log, from the first token on; and that no log has a secret.

use std::path::Path;

use muster_testkit::messages::{first_report, new_uid};
use muster_testkit::{CliOutput, Muster, MusterBuilder, RawAgent};
use serde_json::Value;

use crate::template;

fn guarded(contexts: &Path) -> MusterBuilder {
    Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_AUTH__API__REQUIRED", "true")
        .env("MUSTER_CONTEXTS", contexts.display().to_string())
}

/// The token that the first start shows.
async fn first_token(muster: &Muster) -> String {
    let tokens: Vec<_> = muster
        .stdout()
        .iter()
        .filter_map(|line| line.trim().strip_prefix("muster_").map(str::to_owned))
        .collect();
    assert_eq!(tokens.len(), 1, "{:?}", muster.stdout());
    format!("muster_{}", tokens[0])
}

async fn json(output: CliOutput) -> Value {
    serde_json::from_str(&output.expect_success()).unwrap()
}

#[tokio::test]
async fn the_first_token_is_shown_once_and_makes_others() {
    let home = tempfile::tempdir().unwrap();
    let mut muster = guarded(&home.path().join("contexts.yaml")).start().await;
    let refused = muster.cli(&["agents", "list"]).await.expect_failure();
    assert!(refused.contains("muster login"), "{refused}");
    let first = first_token(&muster).await;

    let said =
        muster.cli_with_input(&["login", "--name", "here"], &format!("{first}\n")).await.expect_success();
    assert_eq!(said.trim(), "context here: admin, system of tenant default");
    muster.cli(&["agents", "list"]).await.expect_success();
    let made = muster
        .cli(&["tokens", "create", "--account", "ci", "--role", "operator", "--expires", "1h", "--quiet"])
        .await
        .expect_success();
    let ci = made.trim();
    let who = muster.cli(&["whoami", "--token", ci]).await.expect_success();
    assert_eq!(who.trim(), "ci, operator of tenant default");
    let denied = muster.cli(&["tokens", "list", "--token", ci]).await.expect_failure();
    assert!(denied.contains("it needs admin or system"), "{denied}");
    let revoked = json(muster.cli(&["tokens", "revoke", "--account", "ci", "-o", "json"]).await).await;
    assert_eq!(revoked["items"][0]["state"], "revoked");
    let refused = muster.cli(&["whoami", "--token", ci]).await.expect_failure();
    assert!(refused.contains("revoked"), "{refused}");

    muster.terminate().await;
    muster.restart().await;
    assert_eq!(first_token(&muster).await, first, "a second start shows another token");
    muster.cli(&["whoami"]).await.expect_success();
    muster.assert_no_errors();
}

#[tokio::test]
async fn a_lost_token_is_recovered_in_the_store() {
    let home = tempfile::tempdir().unwrap();
    let contexts = home.path().join("contexts.yaml");
    let data = home.path().join("data");
    let mut muster = guarded(&contexts).data_dir(&data).start().await;
    muster.terminate().await;
    let shown = guarded(&contexts).run(&["recover-token", "--data-dir", &data.display().to_string()]).await;
    let shown = shown.expect_success();
    let token = shown.lines().map(str::trim).find(|line| line.starts_with("muster_")).unwrap();
    muster.restart().await;
    let who = muster.cli(&["whoami", "--token", token]).await.expect_success();
    assert_eq!(who.trim(), "admin, system of tenant default");
}

#[tokio::test]
async fn a_context_is_kept_for_its_owner_and_sent_to_its_server_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("contexts.yaml");
    let muster = guarded(&file).start().await;
    let first = first_token(&muster).await;
    muster.cli_with_input(&["login", "--name", "here"], &first).await.expect_success();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let other = guarded(&file).start().await;
    let refused = other.cli(&["whoami"]).await.expect_failure();
    assert!(refused.contains("muster login"), "the token went to another server: {refused}");
    // Without --server, the context says which.
    let builder = guarded(&file);
    let who = builder.run(&["whoami"]).await.expect_success();
    assert_eq!(who.trim(), "admin, system of tenant default");
    let listed = builder.run(&["contexts", "list"]).await.expect_success();
    assert!(listed.contains("here") && !listed.contains(&first), "{listed}");
    let unknown = builder.run(&["whoami", "--context", "nowhere"]).await.expect_failure();
    assert!(unknown.contains("nowhere"), "{unknown}");
    builder.run(&["contexts", "remove", "here"]).await.expect_success();
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&first));
}

#[tokio::test]
async fn a_tenant_lives_and_its_audit_log_tells_it() {
    let home = tempfile::tempdir().unwrap();
    let muster = guarded(&home.path().join("contexts.yaml")).start().await;
    let first = first_token(&muster).await;
    muster.cli_with_input(&["login"], &first).await.expect_success();
    muster.cli(&["tenants", "create", "acme", "--agents", "10"]).await.expect_success();
    let admin = muster
        .cli(&["tokens", "create", "--account", "ana", "--role", "admin", "--tenant", "acme", "--quiet"])
        .await
        .expect_success();
    let admin = admin.trim();
    muster
        .cli_with_input(&["apply", "-f", "-", "--token", admin], &template("v1", "1s"))
        .await
        .expect_success();
    let configs = json(muster.cli(&["configs", "list", "-o", "json"]).await).await;
    assert_eq!(configs["items"], serde_json::json!([]), "another tenant sees it");
    let limited = muster.cli(&["tenants", "limit", "acme", "--connections", "5", "--revision", "1"]).await;
    assert!(limited.expect_success().contains("connections"));
    let late = muster.cli(&["tenants", "limit", "acme", "--connections", "6", "--revision", "1"]).await;
    assert!(late.expect_failure().contains("revision 2"));

    let log = muster.cli(&["audit", "list", "--token", admin]).await.expect_success();
    for told in ["createTenant", "createToken", "apply", "limitTenant", "ana", "127.0.0.1"] {
        assert!(log.contains(told), "{told} is not in {log}");
    }
    let verified = muster.cli(&["audit", "verify", "--token", admin]).await.expect_success();
    assert!(verified.contains("4 records, the chain is whole"), "{verified}");
    let exported = muster.cli(&["audit", "export", "--token", admin]).await.expect_success();
    let numbers: Vec<u64> = exported
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4]);

    let unsure = muster.cli(&["tenants", "remove", "acme", "--confirm", "acm"]).await.expect_failure();
    assert!(unsure.contains("--confirm"), "{unsure}");
    muster.cli(&["tenants", "remove", "acme", "--confirm", "acme"]).await.expect_success();
    muster.cli(&["whoami", "--token", admin]).await.expect_failure();
    let left = muster.cli(&["audit", "verify", "--tenant", "acme"]).await.expect_success();
    assert!(left.contains("5 records"), "{left}");
}

#[tokio::test]
async fn no_log_has_a_secret_also_where_everything_is_told() {
    let home = tempfile::tempdir().unwrap();
    let mut muster = guarded(&home.path().join("contexts.yaml")).arg("--log-level=trace").start().await;
    let first = first_token(&muster).await;
    muster.cli_with_input(&["login"], &first).await.expect_success();
    let made = muster
        .cli(&["tokens", "create", "--account", "ci", "--role", "admin", "--quiet"])
        .await
        .expect_success();
    let second = made.trim().to_owned();
    let agents_own = format!("opamp_{}", "S3cret".repeat(5));
    let unknown = format!("muster_{}", "5ec7e7".repeat(10));
    let signed = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzM2NyM3QifQ.c2VjcmV0";
    for token in [&second, &agents_own, &unknown, signed] {
        muster.cli(&["agents", "list", "--token", token]).await;
    }
    let uid = new_uid();
    let mut agent = RawAgent::connect(&muster.opamp_url()).await;
    agent.exchange(&first_report(uid, &[])).await;
    let client = reqwest::Client::new();
    let shown = client.get(format!("{}/api/v1/agents/{uid}", muster.http_url())).bearer_auth(&second);
    assert!(shown.send().await.unwrap().status().is_success());
    muster.terminate().await;
    let logs = muster.logs().join("\n");
    assert!(
        logs.contains("\"admitted\"") || logs.contains("event=\"admitted\"") || logs.contains("admitted"),
        "the log tells too little"
    );
    for secret in [&first, &second, &agents_own, &unknown, signed] {
        let part = secret.get(12..28).unwrap_or(secret);
        assert!(!logs.contains(part), "{part} of a secret is in the log");
    }
    let on_disk = std::fs::read(muster.data_dir().join("muster.db")).unwrap();
    let is_in = |secret: &str| on_disk.windows(secret.len()).any(|window| window == secret.as_bytes());
    assert!(!is_in(&first) && !is_in(&second), "a token's text is in the store");
}
