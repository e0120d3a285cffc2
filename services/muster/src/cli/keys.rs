//! `muster keys`: the keys by which agents show who they are.

use std::time::Duration;

use clap::Subcommand;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::agents::check_uid;
use super::client::{Body, CliError, Client};
use super::output::{Printer, age, clean, moment, or_dash, table};
use crate::config::parse_duration;

/// Commands on agents' keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KeysCommand {
    /// Make a key and show it, once.
    Create {
        /// What it is called.
        #[arg(value_name = "NAME")]
        name: String,
        /// For how long it is valid, such as 90d.
        #[arg(long, value_name = "DURATION", value_parser = parse_life)]
        expires_in: Option<Duration>,
        /// An instance_uid that it may be used for; may be repeated. Without it, any.
        #[arg(long = "uid", value_name = "UID")]
        uids: Vec<String>,
        /// It may be used for no instance_uid but those that the server gives to its agents.
        #[arg(long)]
        only_given: bool,
    },
    /// List keys, and tokens and certificates that are revoked.
    List,
    /// Revoke a key: its connections are closed within seconds.
    Revoke {
        /// The key's id.
        #[arg(value_name = "ID", required_unless_present = "name", conflicts_with = "name")]
        id: Option<String>,
        /// Tokens (`jwt`) or certificates (`mtls`) with a name, rather than a key.
        #[arg(long, value_name = "KIND", requires = "name", value_parser = ["jwt", "mtls"])]
        kind: Option<String>,
        /// The token's `sub` or the certificate's name.
        #[arg(long, value_name = "NAME", requires = "kind")]
        name: Option<String>,
    },
    /// Replace a key by a new one; the old one counts for a while longer.
    Rotate {
        /// The old key's id.
        #[arg(value_name = "ID")]
        id: String,
        /// How long the old key counts beside the new one, such as 24h.
        #[arg(long, value_name = "DURATION", value_parser = parse_life)]
        overlap: Option<Duration>,
        /// For how long the new key is valid, such as 90d.
        #[arg(long, value_name = "DURATION", value_parser = parse_life)]
        expires_in: Option<Duration>,
    },
}

fn parse_life(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "must be a duration such as 12h or 90d".to_owned())
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Key {
    id: String,
    key: Option<String>,
    name: String,
    kind: String,
    hint: String,
    status: String,
    instance_uids: Option<Vec<String>>,
    created_at: Option<String>,
    expires_at: Option<String>,
}

#[derive(Deserialize)]
struct KeyList {
    items: Vec<Key>,
}

impl KeysCommand {
    pub(super) async fn run(self, client: &Client, printer: &mut Printer<'_>) -> Result<(), CliError> {
        let now = OffsetDateTime::now_utc();
        let answer = match self {
            Self::Create { name, expires_in, uids, only_given } => {
                let mut body = Map::from_iter([("name".to_owned(), json!(name))]);
                seconds(&mut body, "expires_in_seconds", expires_in);
                if only_given || !uids.is_empty() {
                    let uids: Result<Vec<_>, _> = uids.iter().map(|uid| check_uid(uid)).collect();
                    body.insert("instance_uids".to_owned(), json!(uids?));
                }
                client.call(Method::POST, &["keys"], &[], Body::Json(body.into())).await?
            }
            Self::List => client.list(&["keys"], &[], None).await?,
            Self::Revoke { id: Some(id), .. } => {
                client.call(Method::POST, &["keys", &id, "revoke"], &[], Body::Nothing).await?
            }
            Self::Revoke { kind, name, .. } => {
                let body = Body::Json(json!({"kind": kind, "name": name}));
                client.call(Method::POST, &["credentials", "revoke"], &[], body).await?
            }
            Self::Rotate { id, overlap, expires_in } => {
                let mut body = Map::new();
                seconds(&mut body, "overlap_seconds", overlap);
                seconds(&mut body, "expires_in_seconds", expires_in);
                client.call(Method::POST, &["keys", &id, "rotate"], &[], Body::Json(body.into())).await?
            }
        };
        printer.print(answer, |answer| match answer.get("items") {
            Some(_) => client.read::<KeyList>(answer).map(|keys| rows(keys.items, now)),
            None => client.read::<Key>(answer).map(|key| one(key, now)),
        })
    }
}

fn seconds(body: &mut Map<String, Value>, field: &str, duration: Option<Duration>) {
    if let Some(duration) = duration {
        body.insert(field.to_owned(), json!(duration.as_secs()));
    }
}

/// A key that was made is shown first and alone, to be copied.
fn one(key: Key, now: OffsetDateTime) -> String {
    let text = key.key.clone();
    let expires = moment(key.expires_at.as_deref(), now);
    let row = rows(vec![key], now);
    match text {
        None => row,
        Some(text) => format!(
            "{}\n\nKeep it now: it is not shown again. Agents send it as `Authorization: Bearer KEY`. It is valid until {expires}.\n\n{row}",
            clean(&text)
        ),
    }
}

fn rows(keys: Vec<Key>, now: OffsetDateTime) -> String {
    let row = |key: Key| {
        let uids = match key.instance_uids {
            None => "any".to_owned(),
            Some(uids) => uids.len().to_string(),
        };
        vec![
            key.id,
            key.name,
            key.kind,
            or_dash(&key.hint),
            key.status,
            uids,
            moment(key.expires_at.as_deref(), now),
            age(key.created_at.as_deref(), now),
        ]
    };
    let headings = ["ID", "NAME", "KIND", "KEY", "STATUS", "UIDS", "EXPIRES", "AGE"];
    table(&headings, keys.into_iter().map(row))
}
