//! Opening a WebSocket to the server, with everything bounded in time and memory.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use muster_tls::{ClientConfig, Stream};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::{LOCATION, RETRY_AFTER};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::options::FleetError;

/// An agent's connection.
pub(crate) type Socket = WebSocketStream<Stream>;

/// OpAMP's bound for one message.
const LARGEST_MESSAGE: usize = 64 << 20;

/// Where agents connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    uri: Uri,
    host: String,
    port: u16,
    is_secure: bool,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, FleetError> {
        let wrong = |reason: &str| FleetError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        let is_secure = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            _ => return Err(wrong("must begin with ws://, wss:// or http://")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        Ok(Self { uri, host, port, is_secure })
    }

    /// Where an answer that redirects points to; a path alone stays at this host.
    fn redirected(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') {
            return Self::parse(&format!("{}://{}{location}", self.uri.scheme_str()?, self.uri.authority()?))
                .ok();
        }
        Self::parse(&location.replacen("http", "ws", 1)).ok()
    }
}

/// The headers that every agent sends.
pub(crate) fn headers(pairs: &[(String, String)]) -> Result<HeaderMap, FleetError> {
    let mut headers = HeaderMap::with_capacity(pairs.len());
    for (name, value) in pairs {
        let wrong = || FleetError::Header(name.clone());
        let parsed_name = HeaderName::try_from(name).map_err(|_| wrong())?;
        headers.append(parsed_name, HeaderValue::try_from(value).map_err(|_| wrong())?);
    }
    Ok(headers)
}

/// Why an attempt to connect failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection: {0}")]
    Io(#[from] io::Error),
    #[error("no WebSocket: {0}")]
    Handshake(String),
    #[error("the server answered {status}")]
    Refused {
        status: StatusCode,
        /// How long the server wants the agent to stay away.
        retry_after: Option<Duration>,
        /// Where the server sends the agent.
        elsewhere: Option<Target>,
    },
    #[error("no WebSocket within {0:?}")]
    Slow(Duration),
}

/// Opens a WebSocket.
pub(crate) async fn connect(
    target: &Target,
    headers: &HeaderMap,
    source: Option<IpAddr>,
    limit: Duration,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Socket, ConnectError> {
    let attempt = async {
        let stream = dial(target, source).await?;
        let stream = match tls.filter(|_| target.is_secure) {
            Some(tls) => muster_tls::connect(Arc::clone(tls), &target.host, stream).await?,
            None => Stream::Plain(stream),
        };
        upgrade(target, headers, stream).await
    };
    tokio::time::timeout(limit, attempt).await.unwrap_or(Err(ConnectError::Slow(limit)))
}

async fn dial(target: &Target, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no usable address");
    for address in tokio::net::lookup_host((target.host.as_str(), target.port)).await? {
        if source.is_some_and(|source| source.is_ipv4() != address.is_ipv4()) {
            continue;
        }
        match dial_one(address, source).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn dial_one(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(address).await?;
    // On one host, connecting to a free port of the ephemeral range can meet itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn upgrade(target: &Target, headers: &HeaderMap, stream: Stream) -> Result<Socket, ConnectError> {
    let handshake = |error: tungstenite::Error| ConnectError::Handshake(error.to_string());
    let mut request = target.uri.clone().into_client_request().map_err(handshake)?;
    request.headers_mut().extend(headers.clone());
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE));
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => Err(refused(target, &response)),
        Err(error) => Err(handshake(error)),
    }
}

/// Reads an answer that is not the upgrade, as opamp-go does: Retry-After counts with 429 and 503.
fn refused<B>(target: &Target, response: &Response<B>) -> ConnectError {
    let status = response.status();
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let shed = status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE;
    let retry_after = text(RETRY_AFTER).filter(|_| shed).and_then(|seconds| seconds.trim().parse().ok());
    let location = text(LOCATION).filter(|_| status.is_redirection());
    ConnectError::Refused {
        status,
        retry_after: retry_after.map(Duration::from_secs),
        elsewhere: location.and_then(|location| target.redirected(location)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target::parse("ws://localhost:4320/v1/opamp").unwrap()
    }

    fn answer(status: u16, name: &'static str, value: &'static str) -> ConnectError {
        refused(&target(), &Response::builder().status(status).header(name, value).body(()).unwrap())
    }

    #[test]
    fn addresses_name_host_and_port() {
        let plain = Target::parse("ws://localhost/v1/opamp").unwrap();
        assert_eq!((plain.host.as_str(), plain.port), ("localhost", 80));
        let six = Target::parse("ws://[::1]:4320/v1/opamp").unwrap();
        assert_eq!((six.host.as_str(), six.port), ("::1", 4320));
        let secure = Target::parse("wss://localhost/v1/opamp").unwrap();
        assert_eq!((secure.port, secure.is_secure), (443, true));
        for url in ["", "localhost:4320", "http://localhost", "ws:///v1"] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn retry_after_counts_where_the_server_sheds_load() {
        let wait = |error| match error {
            ConnectError::Refused { retry_after, .. } => retry_after,
            _ => None,
        };
        assert_eq!(wait(answer(503, "retry-after", "7")), Some(Duration::from_secs(7)));
        assert_eq!(wait(answer(429, "retry-after", "7")), Some(Duration::from_secs(7)));
        assert_eq!(wait(answer(500, "retry-after", "7")), None);
        assert_eq!(wait(answer(503, "retry-after", "soon")), None);
    }

    #[test]
    fn a_redirect_leads_elsewhere() {
        let to = |error| match error {
            ConnectError::Refused { elsewhere, .. } => elsewhere,
            _ => None,
        };
        let there = to(answer(307, "location", "http://127.0.0.2:99/x")).unwrap();
        assert_eq!((there.host.as_str(), there.port), ("127.0.0.2", 99));
        let here = to(answer(307, "location", "/x")).unwrap();
        assert_eq!((here.host.as_str(), here.port, here.uri.path()), ("localhost", 4320, "/x"));
        assert_eq!(to(answer(200, "location", "/x")), None);
    }

    #[test]
    fn headers_that_http_does_not_allow_are_refused() {
        let pair = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
        assert_eq!(headers(&pair("Authorization", "Bearer x")).unwrap()["authorization"], "Bearer x");
        assert!(headers(&pair("a b", "x")).is_err());
        assert!(headers(&pair("a", "x\ny")).is_err());
    }
}
