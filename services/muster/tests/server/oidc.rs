//! Tokens of a real issuer, on another implementation of OpenID Connect.

use std::process::Stdio;

use muster_testkit::{Muster, issuer_or_skip};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// The issuer while it runs.
struct Issuer {
    _process: Child,
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    url: String,
}

impl Issuer {
    async fn start() -> Option<Self> {
        let mut command = issuer_or_skip()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let asks = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = loop {
            let line = answers.next_line().await.unwrap().unwrap();
            if line.starts_with("http://") {
                break line;
            }
        };
        Some(Self { _process: process, asks, answers, url })
    }

    /// A token that says this role.
    async fn token(&mut self, role: &str) -> String {
        self.asks.write_all(format!("{role}\n").as_bytes()).await.unwrap();
        loop {
            let line = self.answers.next_line().await.unwrap().unwrap();
            assert!(!line.starts_with("refused"), "{line}");
            if line.starts_with("eyJ") {
                return line;
            }
        }
    }
}

fn guarded(issuer: &str, audience: &str) -> muster_testkit::MusterBuilder {
    Muster::builder(env!("CARGO_BIN_EXE_muster"))
        .env("MUSTER_AUTH__API__REQUIRED", "true")
        .env("MUSTER_CONTEXTS", "/nonexistent/contexts.yaml")
        .env("MUSTER_OIDC__ISSUER", issuer)
        .env("MUSTER_OIDC__AUDIENCE", audience)
}

#[tokio::test]
async fn a_token_of_the_issuer_counts_for_its_role_and_audience() {
    let Some(mut issuer) = Issuer::start().await else { return };
    let muster = guarded(&issuer.url, "muster").start().await;
    let operator = issuer.token("operator").await;
    let who = muster.cli(&["whoami", "--token", &operator]).await.expect_success();
    assert_eq!(who.trim(), "ana, operator of tenant default");
    let denied = muster.cli(&["tokens", "list", "--token", &operator]).await.expect_failure();
    assert!(denied.contains("it needs admin or system"), "{denied}");
    // More than tokens of an issuer may allow, and what is no role.
    for role in ["system", "root"] {
        let token = issuer.token(role).await;
        let refused = muster.cli(&["whoami", "--token", &token]).await.expect_failure();
        assert!(refused.contains("gives no role"), "{role}: {refused}");
    }
    let mut changed = operator.clone();
    changed.replace_range(
        operator.len() - 6..operator.len() - 5,
        if operator.ends_with('A') { "B" } else { "A" },
    );
    if changed != operator {
        let refused = muster.cli(&["whoami", "--token", &changed]).await.expect_failure();
        assert!(refused.contains("signature"), "{refused}");
    }

    let other = guarded(&issuer.url, "somebody else").start().await;
    let refused = other.cli(&["whoami", "--token", &operator]).await.expect_failure();
    assert!(refused.contains("another audience"), "{refused}");
}

#[tokio::test]
async fn without_an_issuer_its_tokens_are_refused() {
    let Some(mut issuer) = Issuer::start().await else { return };
    let token = issuer.token("admin").await;
    let muster = Muster::builder(env!("CARGO_BIN_EXE_muster")).start().await;
    let refused = muster.cli(&["whoami", "--token", &token]).await.expect_failure();
    assert!(refused.contains("oidc.issuer"), "{refused}");
}
