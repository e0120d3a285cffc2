//! The keys of an issuer: fetched, kept, and fetched again when they change.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use muster_domain::ids::Timestamp;
use reqwest::{Client, Url, redirect};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::keys::{KeyError, KeySet};
use crate::verify::{Claims, Refused, Rules, verify};

/// Longest wait for an answer of the issuer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest document that is read, in bytes.
const LARGEST: usize = 1 << 20;
/// Keys are fetched anew when they are older than this.
const FRESH: Duration = Duration::from_secs(300);
/// Keys that could not be fetched anew count for so long.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Shortest time between two fetches, whatever tokens ask for: unknown keys are also what attackers send.
const PAUSE: Duration = Duration::from_secs(10);

/// Where the keys of an issuer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// The issuer says, at `/.well-known/openid-configuration` below its own address.
    Discovery(String),
    /// At this address.
    Url(String),
    /// In this file.
    File(std::path::PathBuf),
}

/// Why keys could not be had. The text names the address, never a token.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// An address that is not to be asked.
    #[error("{0}: is not an https address (http counts on this machine alone)")]
    Address(String),
    /// No answer that helps.
    #[error("{url} does not give keys: {reason}")]
    Fetch {
        /// What was asked.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The answer cannot be used.
    #[error("{place}: {source}")]
    Keys {
        /// What was read.
        place: String,
        /// What is wrong with it.
        source: KeyError,
    },
}

/// Why a token of an issuer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It does not count.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nobody can tell: there are no keys.
    #[error(transparent)]
    Unavailable(#[from] IssuerError),
}

struct Kept {
    keys: KeySet,
    fetched: Instant,
}

/// An issuer, and its keys.
pub struct Issuer {
    location: Location,
    rules: Rules,
    client: Client,
    kept: ArcSwapOption<Kept>,
    /// When a fetch was tried last; one at a time.
    tried: Mutex<Option<Instant>>,
}

impl Issuer {
    /// An issuer whose keys are fetched when the first token comes.
    ///
    /// # Errors
    /// The address is one that must not be asked.
    pub fn new(location: Location, rules: Rules) -> Result<Self, IssuerError> {
        if let Location::Discovery(url) | Location::Url(url) = &location {
            checked(url)?;
        }
        let client = Client::builder().timeout(PATIENCE).redirect(redirect::Policy::none()).build();
        let client =
            client.map_err(|error| IssuerError::Fetch { url: String::new(), reason: error.to_string() })?;
        Ok(Self { location, rules, client, kept: ArcSwapOption::empty(), tried: Mutex::new(None) })
    }

    /// Checks a token at this time and returns what it says. With a key that is not known, the issuer's keys
    /// are fetched anew: it may have changed them.
    ///
    /// # Errors
    /// The token does not count, or there are no keys to tell.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, VerifyError> {
        let kept = self.keys(|kept| kept.fetched.elapsed() < FRESH).await?;
        match verify(token, &kept.keys, &self.rules, now) {
            Err(Refused::UnknownKey) => {
                let before = kept.fetched;
                let kept = self.keys(|kept| kept.fetched > before).await?;
                Ok(verify(token, &kept.keys, &self.rules, now)?)
            }
            known => Ok(known?),
        }
    }

    /// The keys, if they will do; else others that are fetched, or those that are there if that fails.
    async fn keys(&self, will_do: impl Fn(&Kept) -> bool) -> Result<Arc<Kept>, IssuerError> {
        if let Some(kept) = self.kept.load_full().filter(|kept| will_do(kept)) {
            return Ok(kept);
        }
        let mut tried = self.tried.lock().await;
        // Somebody may have fetched them meanwhile.
        let kept = self.kept.load_full();
        if let Some(kept) = kept.clone().filter(|kept| will_do(kept)) {
            return Ok(kept);
        }
        let stale = kept.filter(|kept| kept.fetched.elapsed() < STALE);
        if tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
            return stale.ok_or_else(|| IssuerError::Fetch {
                url: self.place(),
                reason: "it did not a moment ago, and is asked again soon".to_owned(),
            });
        }
        *tried = Some(Instant::now());
        match self.fetch().await {
            Ok(keys) => {
                let kept = Arc::new(Kept { keys, fetched: Instant::now() });
                self.kept.store(Some(Arc::clone(&kept)));
                info!(
                    event = "issuer_keys_fetched",
                    issuer = self.place(),
                    "the keys of an issuer were fetched"
                );
                Ok(kept)
            }
            Err(error) => {
                warn!(event = "issuer_keys_failed", issuer = self.place(), %error, "the keys of an issuer could not be fetched");
                stale.ok_or(error)
            }
        }
    }

    fn place(&self) -> String {
        match &self.location {
            Location::Discovery(url) | Location::Url(url) => url.clone(),
            Location::File(path) => path.display().to_string(),
        }
    }

    async fn fetch(&self) -> Result<KeySet, IssuerError> {
        let (place, bytes) = match &self.location {
            Location::File(path) => {
                let place = path.display().to_string();
                let read = tokio::fs::read(path).await;
                let failed = |error: std::io::Error| IssuerError::Fetch {
                    url: place.clone(),
                    reason: error.to_string(),
                };
                (place.clone(), read.map_err(failed)?)
            }
            Location::Url(url) => (url.clone(), self.get(checked(url)?).await?),
            Location::Discovery(issuer) => {
                let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                let document = self.get(checked(&url)?).await?;
                let wrong = |reason: &str| IssuerError::Fetch { url: url.clone(), reason: reason.to_owned() };
                let document: Value =
                    serde_json::from_slice(&document).map_err(|_| wrong("it is not JSON"))?;
                let text = |name| document.get(name).and_then(Value::as_str);
                // Who answers for another issuer is none to ask (OpenID Connect Discovery 1.0, 4.3).
                if text("issuer") != Some(issuer) {
                    return Err(wrong("it is of another issuer"));
                }
                let keys = text("jwks_uri").ok_or_else(|| wrong("it has no jwks_uri"))?;
                (keys.to_owned(), self.get(checked(keys)?).await?)
            }
        };
        KeySet::of_issuer(&bytes).map_err(|source| IssuerError::Keys { place, source })
    }

    async fn get(&self, url: Url) -> Result<Vec<u8>, IssuerError> {
        let failed = |reason: String| IssuerError::Fetch { url: url.to_string(), reason };
        let answer = self.client.get(url.clone()).send().await;
        let mut answer = answer.map_err(|error| failed(error.without_url().to_string()))?;
        if !answer.status().is_success() {
            return Err(failed(format!("it answers {}", answer.status())));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) =
            answer.chunk().await.map_err(|error| failed(error.without_url().to_string()))?
        {
            if bytes.len() + chunk.len() > LARGEST {
                return Err(failed(format!("its answer is larger than {LARGEST} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// Keys that others on the way could change are no keys.
fn checked(url: &str) -> Result<Url, IssuerError> {
    let wrong = || IssuerError::Address(url.to_owned());
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback =
        host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.to_canonical().is_loopback());
    match parsed.scheme() {
        "https" => Ok(parsed),
        "http" if is_loopback => Ok(parsed),
        _ => Err(wrong()),
    }
}
