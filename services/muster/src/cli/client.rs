//! Requests to the HTTP API, and what becomes of their answers.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Certificate, ClientBuilder, Identity, Method, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::GlobalOptions;

/// Most items that are asked for at once.
const PAGE: usize = 1000;
/// Time limit of a request without one.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// An argument or a file that is not well formed.
    #[error("{0}")]
    Usage(String),
    /// Manifests that are wrong, a line each with its place.
    #[error("{why}")]
    Manifests {
        /// What is wrong: `FILE: line L, column C: field: what, and the fix`.
        lines: Vec<String>,
        /// What became of the command.
        why: String,
    },
    /// Nothing listens there.
    #[error("cannot reach Muster at {0}: is `muster serve` running? (--server, MUSTER_SERVER_URL)")]
    Refused(String),
    /// It cannot be reached for another reason.
    #[error("cannot reach Muster at {server}: {cause} (--server, MUSTER_SERVER_URL)")]
    Unreachable {
        /// The server's address.
        server: String,
        /// The innermost reason.
        cause: String,
    },
    /// No answer in time.
    #[error("no answer from Muster at {server} within {timeout:?} (--timeout)")]
    Timeout {
        /// The server's address.
        server: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// An answer that Muster does not give.
    #[error(
        "what answers at {server} is not Muster, or another version of it: {cause} (--server, MUSTER_SERVER_URL)"
    )]
    NotMuster {
        /// The server's address.
        server: String,
        /// What is odd.
        cause: String,
    },
    /// Commands that did not reach their agents' gateways.
    #[error("{missing} of {of} commands were not sent")]
    NotSent {
        /// How many.
        missing: usize,
        /// Of so many.
        of: usize,
    },
    /// A rollout that was watched to its end.
    #[error("the rollout is {state}")]
    Rollout {
        /// Its state.
        state: String,
    },
    /// A stream that should go on for ever.
    #[error("Muster at {0} has ended the stream: it may be restarting")]
    Ended(String),
    /// What was compared is not the same.
    #[error("they differ")]
    Differs,
    /// Muster refused the request.
    #[error("{0}")]
    Problem(Refusal),
    /// An audit log that is not whole.
    #[error("the audit log is not whole: {0}")]
    Audit(String),
    /// The result cannot be written.
    #[error("cannot write the result: {0}")]
    Output(io::Error),
}

impl CliError {
    /// Whether the reader of the result has gone.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// All lines for standard error.
    pub fn report(&self) -> String {
        let places = match self {
            Self::Manifests { lines, .. } => lines.clone(),
            Self::Problem(refusal) => refusal.errors.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        places.into_iter().chain([format!("muster: {self}")]).collect::<Vec<_>>().join("\n")
    }
}

/// Problem details of an answer (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// The status in words.
    pub title: String,
    /// What is wrong, and the fix.
    pub detail: String,
    /// Problems of manifests.
    pub errors: Vec<PlacedError>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.detail.is_empty() { &self.title } else { &self.detail })
    }
}

/// A problem at a place of what was sent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct PlacedError {
    /// Line, from 1.
    pub line: Option<u32>,
    /// Column, from 1.
    pub column: Option<u32>,
    /// Path of the field; may be empty.
    pub field: String,
    /// What is wrong, and the fix.
    pub message: String,
}

impl fmt::Display for PlacedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (Some(line), Some(column)) => write!(f, "line {line}, column {column}: ")?,
            (Some(line), None) => write!(f, "line {line}: ")?,
            (None, _) => {}
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// What is sent with a request.
pub(super) enum Body {
    Nothing,
    MergePatch(Value),
    Manifests(String),
    Json(Value),
}

/// The requests' TLS: whom the options trust, and the certificate that they show.
fn secured(mut builder: ClientBuilder, options: &GlobalOptions) -> Result<ClientBuilder, CliError> {
    let read = |name: &str, path: &Path| {
        let file = path.display();
        std::fs::read(path)
            .map_err(|error| CliError::Usage(format!("{name}: {file} cannot be read: {error}")))
    };
    if let Some(path) = &options.ca_file {
        let wrong = || CliError::Usage(format!("--ca-file: {} has no certificate in PEM", path.display()));
        let authorities = Certificate::from_pem_bundle(&read("--ca-file", path)?).map_err(|_| wrong())?;
        if authorities.is_empty() {
            return Err(wrong());
        }
        builder = builder.tls_certs_only(authorities);
    }
    if let (Some(cert), Some(key)) = (&options.cert_file, &options.key_file) {
        let pem = [read("--cert-file", cert)?, read("--key-file", key)?].concat();
        let identity = Identity::from_pem(&pem).map_err(|_| {
            let files = format!("{} and {}", cert.display(), key.display());
            CliError::Usage(format!("--cert-file, --key-file: {files} are no certificate and key in PEM"))
        })?;
        builder = builder.identity(identity);
    }
    Ok(builder)
}

/// A connection to one server.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    /// The base without credentials, for messages.
    server: String,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(options: &GlobalOptions) -> Result<Self, CliError> {
        let not_an_address = || {
            // Not shown: it may hold credentials.
            let what = "--server (MUSTER_SERVER_URL) is not an address such as http://127.0.0.1:4321";
            CliError::Usage(what.to_owned())
        };
        let base = Url::parse(options.server.as_deref().unwrap_or(super::DEFAULT_SERVER))
            .map_err(|_| not_an_address())?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(not_an_address());
        }
        let mut server = base.clone();
        if server.set_username("").is_err() || server.set_password(None).is_err() {
            return Err(not_an_address());
        }
        let mut headers = HeaderMap::new();
        // Compose files set variables that have no value to nothing.
        if let Some(token) = options.token.as_ref().filter(|token| !token.expose().is_empty()) {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| {
                CliError::Usage("--token (MUSTER_TOKEN) has characters that no token has".to_owned())
            })?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        if let Some(tenant) = &options.tenant {
            let named = HeaderValue::try_from(tenant).map_err(|_| {
                CliError::Usage("--tenant (MUSTER_TENANT) is not the name of a tenant".to_owned())
            })?;
            headers.insert("muster-tenant", named);
        }
        let builder = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .timeout(options.timeout)
            // A redirect would turn a POST into a GET, and carry the token elsewhere.
            .redirect(redirect::Policy::none());
        // A proxy for the outer world does not reach this machine's own addresses.
        let builder = if is_loopback(&base) { builder.no_proxy() } else { builder };
        let http = secured(builder, options)?
            .build()
            .map_err(|error| CliError::Usage(format!("cannot set up requests: {}", innermost(&error))))?;
        let server = server.as_str().trim_end_matches('/').to_owned();
        Ok(Self { http, base, server, timeout: options.timeout })
    }

    pub(super) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, CliError> {
        self.call(Method::GET, path, query, Body::Nothing).await
    }

    /// Sends a request to a path under `/api/v1` and gives the answer's JSON.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Body,
    ) -> Result<Value, CliError> {
        let url = self.url(path, query)?;
        let request = self.http.request(method, url);
        let request = match body {
            Body::Nothing => request,
            Body::MergePatch(patch) => {
                request.header(CONTENT_TYPE, "application/merge-patch+json").body(patch.to_string())
            }
            Body::Json(value) => request.header(CONTENT_TYPE, "application/json").body(value.to_string()),
            Body::Manifests(text) => request.header(CONTENT_TYPE, "application/yaml").body(text),
        };
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| self.failed(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|error| self.not_muster(&format!("its answer is not JSON, {error}")));
        }
        Err(self.refused(status, &bytes))
    }

    /// Opens a stream under `/api/v1`, that goes on for as long as the server wants.
    pub(super) async fn stream(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Response, CliError> {
        let request = self.http.get(self.url(path, query)?).timeout(FOR_EVER).send();
        let response = match tokio::time::timeout(self.timeout, request).await {
            Ok(response) => response.map_err(|error| self.failed(&error))?,
            Err(_) => return Err(self.timed_out(self.timeout)),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.map_err(|error| self.failed(&error))?;
        Err(self.refused(status, &bytes))
    }

    /// The next bytes of a stream; `None` at its end.
    pub(super) async fn next_bytes(
        &self,
        response: &mut Response,
        silence: Duration,
    ) -> Result<Option<Bytes>, CliError> {
        match tokio::time::timeout(silence, response.chunk()).await {
            // A connection that breaks ends the stream like any other end.
            Ok(bytes) => Ok(bytes.unwrap_or_default()),
            Err(_) => Err(self.timed_out(silence)),
        }
    }

    fn timed_out(&self, timeout: Duration) -> CliError {
        CliError::Timeout { server: self.server.clone(), timeout }
    }

    fn refused(&self, status: StatusCode, bytes: &[u8]) -> CliError {
        match serde_json::from_slice::<Refusal>(bytes) {
            Ok(refusal) if !refusal.detail.is_empty() || !refusal.title.is_empty() => {
                CliError::Problem(refusal)
            }
            _ => self.not_muster(&format!("it answers {}", in_words(status))),
        }
    }

    /// All items of a list, or the first so many, page by page; with what the last page says beside.
    pub(super) async fn list(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        most: Option<usize>,
    ) -> Result<Value, CliError> {
        let mut items: Vec<Value> = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = most.map_or(PAGE, |most| PAGE.min(most.saturating_sub(items.len()))).to_string();
            let mut query = query.to_vec();
            query.push(("limit", &page));
            if let Some(cursor) = &cursor {
                query.push(("cursor", cursor));
            }
            let mut answer = self.get(path, &query).await?;
            let Some(Value::Array(page)) = answer.get_mut("items") else {
                return Err(self.not_muster("its answer is not a list"));
            };
            items.append(page);
            let next = answer.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
            let is_enough = most.is_some_and(|most| items.len() >= most);
            if next.is_some() && next == cursor {
                return Err(self.not_muster("it repeats a page"));
            }
            if next.is_none() || is_enough {
                if let Some(first) = answer.get_mut("items") {
                    *first = Value::Array(items);
                }
                return Ok(answer);
            }
            cursor = next;
        }
    }

    /// An answer's JSON as a type, for tables.
    pub(super) fn read<T: DeserializeOwned>(&self, answer: Value) -> Result<T, CliError> {
        serde_json::from_value(answer)
            .map_err(|error| self.not_muster(&format!("its answer is not understood, {error}; try -o json")))
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Url, CliError> {
        // These would be left out of the path and name something else.
        if path.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return Err(CliError::Usage("a name must not be empty, `.` or `..`".to_owned()));
        }
        let mut url = self.base.clone();
        url.set_query(None);
        url.set_fragment(None);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn failed(&self, error: &reqwest::Error) -> CliError {
        let server = self.server.clone();
        if error.is_timeout() {
            return self.timed_out(self.timeout);
        }
        match source_of::<io::Error>(error) {
            Some(io) if io.kind() == io::ErrorKind::ConnectionRefused => CliError::Refused(server),
            _ => CliError::Unreachable { server, cause: innermost(error) },
        }
    }

    /// The server's address, without credentials.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// The server's host.
    pub(super) fn host(&self) -> String {
        self.base.host_str().unwrap_or_default().to_owned()
    }

    /// Whether nobody on the way can read what is sent.
    pub(super) fn is_secret(&self) -> bool {
        self.base.scheme() == "https" || is_loopback(&self.base)
    }

    pub(super) fn not_muster(&self, cause: &str) -> CliError {
        CliError::NotMuster { server: self.server.clone(), cause: cause.to_owned() }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.to_canonical().is_loopback())
}

fn in_words(status: StatusCode) -> String {
    status
        .canonical_reason()
        .map_or_else(|| status.to_string(), |reason| format!("{} {reason}", status.as_u16()))
}

fn sources<'a>(
    error: &'a dyn std::error::Error,
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error| error.source())
}

fn source_of<T: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&T> {
    sources(error).find_map(|source| source.downcast_ref())
}

/// The reason at the bottom, which names no URL.
fn innermost(error: &reqwest::Error) -> String {
    sources(error).last().map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}
