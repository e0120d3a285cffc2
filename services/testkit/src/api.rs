//! A client of the REST API.

use std::fmt;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;

use crate::metrics::Metrics;

/// A client of the REST API of one server. Paths begin with `/`, such as `/api/v1/agents`.
#[derive(Clone, Debug)]
pub struct Api {
    base: String,
    client: Client,
}

/// An answer other than success, or none at all.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The HTTP status; 0 if there was no answer.
    pub status: u16,
    /// The body: the problem as JSON (RFC 9457), or else a text.
    pub problem: Value,
}

impl ApiError {
    /// What the problem says about this occurrence, or else about its kind.
    pub fn detail(&self) -> &str {
        let text = |key| self.problem.get(key).and_then(Value::as_str);
        text("detail").or(text("title")).or(self.problem.as_str()).unwrap_or_default()
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.problem)
    }
}

impl std::error::Error for ApiError {}

impl Api {
    /// A client for the server at `base`, such as `http://127.0.0.1:4321`.
    pub fn new(base: impl Into<String>) -> Self {
        // A proxy of the environment would be asked for 127.0.0.1 too.
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(30)).build();
        Self { base: base.into(), client: client.expect("an HTTP client") }
    }

    /// A client for the server at `base`, such as `https://127.0.0.1:4321`, whose certificate is of this
    /// authority (PEM).
    pub fn with_authority(base: impl Into<String>, ca: &[u8]) -> Self {
        let certificates = reqwest::Certificate::from_pem_bundle(ca).expect("certificates in PEM");
        let builder = Client::builder().no_proxy().timeout(Duration::from_secs(30));
        let client = builder.tls_certs_only(certificates).build();
        Self { base: base.into(), client: client.expect("an HTTP client") }
    }

    /// The server's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET of JSON.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        send(self.request(Method::GET, path)).await
    }

    /// GET of a text.
    pub async fn get_text(&self, path: &str) -> Result<String, ApiError> {
        answer(self.request(Method::GET, path)).await
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        send(self.request(Method::POST, path).json(body)).await
    }

    /// POST of a body of any type, such as manifests.
    pub async fn post_text(&self, path: &str, content_type: &str, body: &str) -> Result<Value, ApiError> {
        let request = self.request(Method::POST, path).header(CONTENT_TYPE, content_type);
        send(request.body(body.to_owned())).await
    }

    /// PUT of JSON.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        send(self.request(Method::PUT, path).json(body)).await
    }

    /// PATCH of JSON.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        send(self.request(Method::PATCH, path).json(body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Value, ApiError> {
        send(self.request(Method::DELETE, path)).await
    }

    /// The metrics at `/metrics`.
    pub async fn metrics(&self) -> Result<Metrics, ApiError> {
        Ok(Metrics::parse(&self.get_text("/metrics").await?))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }
}

/// The body of a success; null if it is empty.
async fn send(request: RequestBuilder) -> Result<Value, ApiError> {
    let text = answer(request).await?;
    if text.is_empty() {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| panic!("the answer is not JSON ({error}): {text}")))
}

async fn answer(request: RequestBuilder) -> Result<String, ApiError> {
    let silent = |error: reqwest::Error| ApiError { status: 0, problem: Value::String(chain(&error)) };
    let response = request.send().await.map_err(silent)?;
    let status = response.status();
    let text = response.text().await.map_err(silent)?;
    if status.is_success() {
        return Ok(text);
    }
    let problem = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Err(ApiError { status: status.as_u16(), problem })
}

/// The error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_says_what_the_problem_says() {
        let error = |problem| ApiError { status: 400, problem };
        assert_eq!(error(json!({"title": "Bad", "detail": "line 3"})).detail(), "line 3");
        assert_eq!(error(json!({"title": "Bad"})).detail(), "Bad");
        assert_eq!(error(json!("plain")).detail(), "plain");
        assert_eq!(error(json!({"title": "Bad"})).to_string(), "400: {\"title\":\"Bad\"}");
    }

    #[tokio::test]
    async fn no_answer_is_an_error_with_its_cause() {
        let port = crate::free_ports(1)[0];
        let error = Api::new(format!("http://127.0.0.1:{port}")).get("/ready").await.unwrap_err();
        assert_eq!(error.status, 0);
        assert!(error.detail().contains("refused"), "{error}");
    }
}
