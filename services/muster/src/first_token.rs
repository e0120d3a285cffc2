//! The first token of a store: without one, nobody could make any.

use std::time::Duration;

use anyhow::Context;
use muster_domain::access::Role;
use muster_domain::audit::{Entry, Outcome};
use muster_domain::ids::{Timestamp, TokenId};
use muster_domain::tenant::DEFAULT;
use muster_domain::token::{self, Token};
use muster_ports::store::Store;
use tracing::info;
use uuid::Uuid;

/// Who the first token is of.
const ACCOUNT: &str = "admin";
/// For how long it counts.
const LIFE: Duration = Duration::from_secs(90 * 86_400);

/// Makes a token of role system if the store has never had one, and shows it on standard output, which is not the
/// log.
///
/// # Errors
/// If the store did not do it.
pub(crate) async fn offer(store: &dyn Store, now: Timestamp) -> anyhow::Result<()> {
    let text = token::text(&rand::random());
    let (token, audit) = make(&text, now)?;
    let is_first = store.create_first_token(&token, &audit).await.context("the first token was not made")?;
    if is_first {
        info!(event = "first_token_made", account = ACCOUNT, token_id = %token.id, "the first token was made; it is on standard output");
        show(&text);
    }
    Ok(())
}

/// Makes another token of role system, for who has lost theirs, and shows it.
///
/// # Errors
/// If the store did not do it.
pub(crate) async fn another(store: &dyn Store, now: Timestamp) -> anyhow::Result<()> {
    let text = token::text(&rand::random());
    let (token, audit) = make(&text, now)?;
    store.create_token(&token, &audit, usize::MAX).await.context("the token was not made")?;
    show(&text);
    Ok(())
}

fn make(text: &str, now: Timestamp) -> anyhow::Result<(Token, Entry)> {
    let token = Token {
        id: TokenId(Uuid::now_v7()),
        tenant: DEFAULT.parse().context("tenant")?,
        account: ACCOUNT.to_owned(),
        role: Role::System,
        digest: token::digest(text),
        created_by: "muster".to_owned(),
        created_at: now,
        expires_at: now.plus(LIFE),
        revoked_at: None,
    };
    let audit = Entry {
        at: now,
        actor: "muster".to_owned(),
        role: Role::System,
        remote: String::new(),
        operation: "createToken".to_owned(),
        target: format!("tokens/{}", token.id),
        before: String::new(),
        after: String::new(),
        outcome: Outcome::Done,
    };
    Ok((token, audit))
}

fn show(text: &str) {
    println!(
        "This token is shown once. It has role system in tenant {DEFAULT}, for 90 days:\n\n  {text}\n\n\
         Use it with `muster login`, or as MUSTER_TOKEN; make others with `muster tokens create`."
    );
}
