//! `muster tokens`, `muster tenants` and `muster whoami`: who may do what.

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::client::{Body, CliError, Client};
use super::output::{Page, Printer, age, moment, or_dash, table};
use crate::config::parse_duration;

/// Commands on tokens of the API.
#[derive(Debug, Clone, Subcommand)]
pub enum TokensCommand {
    /// Make a token of a person or a service account; it is shown this once.
    Create(NewToken),
    /// List tokens; those that do not count any more among them.
    List,
    /// Revoke a token, or every token of an account: it does not count from now on.
    Revoke {
        /// The token's id.
        #[arg(value_name = "ID", required_unless_present = "account", conflicts_with = "account")]
        id: Option<String>,
        /// Revoke every token of this account.
        #[arg(long, value_name = "ACCOUNT")]
        account: Option<String>,
    },
}

/// What token is wanted.
#[derive(Debug, Clone, Args)]
pub struct NewToken {
    /// Whose it is: a person or a service account, such as ana@example.com or ci.
    #[arg(long, value_name = "ACCOUNT")]
    pub account: String,
    /// What it allows: viewer, operator, approver, admin, or system.
    #[arg(long, value_name = "ROLE", default_value = "viewer")]
    pub role: muster_domain::access::Role,
    /// For how long it counts.
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = parse_life)]
    pub expires: Duration,
    /// Print the token alone, for scripts.
    #[arg(long)]
    pub quiet: bool,
}

fn parse_life(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "must be a duration such as 12h or 90d".to_owned())
}

/// Commands on tenants.
#[derive(Debug, Clone, Subcommand)]
pub enum TenantsCommand {
    /// List tenants; those that were removed among them.
    List,
    /// Show a tenant: what it may use, and how many agents it has.
    Get {
        /// The tenant's name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Make a tenant.
    Create {
        /// Its name: lower-case letters, digits, `-` and `.`.
        #[arg(value_name = "NAME")]
        name: String,
        /// What it may use.
        #[command(flatten)]
        quotas: QuotaArgs,
    },
    /// Set all that a tenant may use; what is left out is as configured for every tenant.
    Limit {
        /// The tenant's name.
        #[arg(value_name = "NAME")]
        name: String,
        /// What it may use.
        #[command(flatten)]
        quotas: QuotaArgs,
        /// Only if the tenant is still at this revision.
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
    },
    /// Remove a tenant and all that it has but its audit log. Its name is not given again.
    Remove {
        /// The tenant's name.
        #[arg(value_name = "NAME")]
        name: String,
        /// The tenant's name again: what is removed does not come back.
        #[arg(long, value_name = "NAME")]
        confirm: String,
    },
}

/// What a tenant may use.
#[derive(Debug, Clone, Args)]
pub struct QuotaArgs {
    /// Most agents that are stored.
    #[arg(long, value_name = "N")]
    pub agents: Option<u64>,
    /// Most connections of agents at once, on one gateway.
    #[arg(long, value_name = "N")]
    pub connections: Option<u64>,
    /// Reports a second, on one gateway.
    #[arg(long, value_name = "N")]
    pub messages_per_second: Option<u64>,
    /// Most bytes of one apply's manifests.
    #[arg(long, value_name = "N")]
    pub config_bytes: Option<u64>,
    /// Requests to the API a second, on one process.
    #[arg(long, value_name = "N")]
    pub requests_per_second: Option<u64>,
}

impl QuotaArgs {
    fn json(&self) -> Value {
        let named = [
            ("agents", self.agents),
            ("connections", self.connections),
            ("messages_per_second", self.messages_per_second),
            ("config_bytes", self.config_bytes),
            ("requests_per_second", self.requests_per_second),
        ];
        let given = named.into_iter().filter_map(|(name, quota)| Some((name.to_owned(), quota?.into())));
        Value::Object(given.collect::<Map<_, _>>())
    }
}

impl TokensCommand {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let now = OffsetDateTime::now_utc();
        match self {
            Self::Create(NewToken { account, role, expires, quiet }) => {
                let body =
                    json!({"account": account, "role": role.name(), "expires_in_seconds": expires.as_secs()});
                let answer = client.call(Method::POST, &["tokens"], &[], Body::Json(body)).await?;
                printer.print(answer, |answer| {
                    let token: Token = client.read(answer)?;
                    Ok(if quiet { token.token } else { made(token, now) })
                })
            }
            Self::List => {
                let answer = client.list(&["tokens"], &[], None).await?;
                printer.print(answer, |answer| Ok(tokens(client.read(answer)?, now)))
            }
            Self::Revoke { id: Some(id), .. } => {
                let answer = client.call(Method::DELETE, &["tokens", &id], &[], Body::Nothing).await?;
                printer.print(answer, |answer| {
                    let token: Token = client.read(answer)?;
                    Ok(format!("token {} of {} is revoked", token.id, token.account))
                })
            }
            Self::Revoke { account, .. } => {
                let query = [("account", account.as_deref().unwrap_or_default())];
                let answer = client.call(Method::DELETE, &["tokens"], &query, Body::Nothing).await?;
                printer.print(answer, |answer| Ok(tokens(client.read(answer)?, now)))
            }
        }
    }
}

impl TenantsCommand {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let now = OffsetDateTime::now_utc();
        let answer = match self {
            Self::List => {
                let answer = client.list(&["tenants"], &[], None).await?;
                return printer.print(answer, |answer| Ok(tenants(client.read(answer)?, now)));
            }
            Self::Get { name } => client.get(&["tenants", &name], &[]).await?,
            Self::Create { name, quotas } => {
                let body = json!({"name": name, "quotas": quotas.json()});
                client.call(Method::POST, &["tenants"], &[], Body::Json(body)).await?
            }
            Self::Limit { name, quotas, revision } => {
                let body = json!({"quotas": quotas.json(), "revision": revision});
                client.call(Method::PUT, &["tenants", &name, "quotas"], &[], Body::Json(body)).await?
            }
            Self::Remove { name, confirm } => {
                if name != confirm {
                    let what = format!("--confirm: must be {name:?}, what is removed does not come back");
                    return Err(CliError::Usage(what));
                }
                client.call(Method::DELETE, &["tenants", &name], &[], Body::Nothing).await?
            }
        };
        printer.print(answer, |answer| Ok(tenant(client.read(answer)?, now)))
    }
}

/// Shows who the server takes the client for.
pub(super) async fn who_am_i(client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
    let answer = client.get(&["whoami"], &[]).await?;
    printer.print(answer, |answer| {
        let who: Who = client.read(answer)?;
        Ok(format!("{}, {} of tenant {}", who.account, who.role, who.tenant))
    })
}

/// Who the server takes the client for.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Who {
    pub(super) account: String,
    pub(super) role: String,
    pub(super) tenant: String,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Token {
    token: String,
    id: String,
    account: String,
    tenant: String,
    role: String,
    state: String,
    created_by: String,
    created_at: Option<String>,
    expires_at: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tenant {
    name: String,
    quotas: Map<String, Value>,
    revision: u64,
    created_at: Option<String>,
    removed_at: Option<String>,
    agents: Option<u64>,
}

fn made(token: Token, now: OffsetDateTime) -> String {
    Page::default()
        .pairs(
            "Token",
            [
                ("id", token.id),
                ("account", token.account),
                ("tenant", token.tenant),
                ("role", token.role),
                ("expires", moment(token.expires_at.as_deref(), now)),
            ],
        )
        .part("Its text, which is shown this once (MUSTER_TOKEN, muster login)", &token.token)
        .finish()
}

fn tokens(tokens: List<Token>, now: OffsetDateTime) -> String {
    let row = |token: Token| {
        vec![
            token.id,
            token.account,
            token.role,
            token.state,
            or_dash(token.expires_at.as_deref().unwrap_or_default()),
            token.created_by,
            age(token.created_at.as_deref(), now),
        ]
    };
    table(&["ID", "ACCOUNT", "ROLE", "STATE", "EXPIRES", "MADE BY", "AGE"], tokens.items.into_iter().map(row))
}

fn quotas(quotas: &Map<String, Value>) -> Vec<(String, String)> {
    let given = quotas.iter().filter(|(_, quota)| !quota.is_null());
    given.map(|(name, quota)| (name.clone(), quota.to_string())).collect()
}

fn tenants(tenants: List<Tenant>, now: OffsetDateTime) -> String {
    let row = |tenant: Tenant| {
        let quotas: Vec<_> =
            quotas(&tenant.quotas).into_iter().map(|(name, quota)| format!("{name}={quota}")).collect();
        let state = if tenant.removed_at.is_some() { "removed" } else { "live" };
        vec![
            tenant.name,
            state.to_owned(),
            or_dash(&quotas.join(" ")),
            age(tenant.created_at.as_deref(), now),
        ]
    };
    table(&["NAME", "STATE", "QUOTAS", "AGE"], tenants.items.into_iter().map(row))
}

fn tenant(tenant: Tenant, now: OffsetDateTime) -> String {
    let quotas = quotas(&tenant.quotas);
    let removed = tenant.removed_at.as_deref().map(|at| moment(Some(at), now)).unwrap_or_default();
    Page::default()
        .pairs(
            "Tenant",
            [
                ("name", tenant.name),
                ("revision", tenant.revision.to_string()),
                ("agents", tenant.agents.map(|agents| agents.to_string()).unwrap_or_default()),
                ("made", moment(tenant.created_at.as_deref(), now)),
                ("removed", removed),
            ],
        )
        .pairs("Quotas", quotas)
        .finish()
}
