//! An agent over plain HTTP that does nothing by itself.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use muster_proto::Message;
use muster_proto::opamp::{AgentToServer, ServerToAgent};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method};

use crate::DEADLINE;

/// Polls an OpAMP server as a test says. Nothing is decompressed, repeated or redirected by itself.
#[derive(Clone, Debug)]
pub struct Poller {
    url: String,
    client: Client,
    headers: HeaderMap,
    gzip: bool,
}

/// What a request was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: Bytes,
}

/// The bytes, compressed.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

/// The bytes, decompressed; panics if they are no gzip.
pub fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut plain).expect("a gzip body");
    plain
}

impl Answer {
    /// A header by its name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The message in the body; panics if it is none.
    pub fn message(&self) -> ServerToAgent {
        let body = match self.header("content-encoding") {
            Some("gzip") => gunzip(&self.body).into(),
            None => self.body.clone(),
            Some(other) => panic!("the answer is encoded as {other}"),
        };
        assert_eq!(self.header("content-type"), Some("application/x-protobuf"), "{self:?}");
        match ServerToAgent::decode(body) {
            Ok(message) => message,
            Err(error) => panic!("the answer is not a ServerToAgent: {error}: {self:?}"),
        }
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Poller {
    /// An agent that polls `http://HOST:PORT/PATH`, with no more headers than it must send.
    pub fn new(url: impl Into<String>) -> Self {
        // A proxy of the environment would be asked for 127.0.0.1 too.
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/x-protobuf"));
        Self { url: url.into(), client: client.expect("an HTTP client"), headers, gzip: false }
    }

    /// The same agent at another server, or through another gateway.
    pub fn at(&self, url: impl Into<String>) -> Self {
        Self { url: url.into(), ..self.clone() }
    }

    /// Compresses what it sends.
    pub fn compressing(mut self) -> Self {
        self.gzip = true;
        self.header("content-encoding", "gzip")
    }

    /// Sets a header, or removes it where the value is empty.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a header's name");
        match value {
            "" => self.headers.remove(&name),
            value => self.headers.insert(name, HeaderValue::try_from(value).expect("a header's value")),
        };
        self
    }

    /// Sends a message; panics if there is no answer in time.
    pub async fn send(&self, message: &AgentToServer) -> Answer {
        let body = message.encode_to_vec();
        self.send_raw(if self.gzip { gzip(&body) } else { body }).await
    }

    /// Sends a body as it is.
    pub async fn send_raw(&self, body: impl Into<Bytes>) -> Answer {
        match self.try_send_raw(body, DEADLINE).await {
            Ok(answer) => answer,
            Err(reason) => panic!("no answer of {}: {reason}", self.url),
        }
    }

    /// Sends a message and gives up waiting after a while, as clients do. Says why there is no answer.
    pub async fn try_send(&self, message: &AgentToServer, limit: Duration) -> Result<Answer, String> {
        self.try_send_raw(message.encode_to_vec(), limit).await
    }

    async fn try_send_raw(&self, body: impl Into<Bytes>, limit: Duration) -> Result<Answer, String> {
        let request = self.client.post(&self.url).headers(self.headers.clone()).body(body.into());
        answered(request.timeout(limit)).await
    }

    /// Sends a request without a body.
    pub async fn ask(&self, method: Method) -> Answer {
        let request = self.client.request(method, &self.url).timeout(DEADLINE);
        match answered(request).await {
            Ok(answer) => answer,
            Err(reason) => panic!("no answer of {}: {reason}", self.url),
        }
    }

    /// Sends a message and returns the one it is answered; panics if it is refused.
    pub async fn exchange(&self, message: &AgentToServer) -> ServerToAgent {
        let answer = self.send(message).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let message = answer.message();
        assert_eq!(message.error_response, None);
        message
    }
}

async fn answered(request: reqwest::RequestBuilder) -> Result<Answer, String> {
    let response = request.send().await.map_err(|error| format!("{error:?}"))?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.bytes().await.map_err(|error| format!("{error:?}"))?;
    Ok(Answer { status, headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_comes_back() {
        let bytes = [b"abc".repeat(1000), vec![0, 255]].concat();
        assert!(gzip(&bytes).len() < 100);
        assert_eq!(gunzip(&gzip(&bytes)), bytes);
    }
}
