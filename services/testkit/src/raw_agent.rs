//! An agent that does nothing by itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use muster_fleet::wire;
use muster_proto::opamp::{AgentToServer, ServerToAgent};
use muster_tls::{ClientConfig, Stream};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, Uri};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::DEADLINE;

/// Large enough to send what a server must refuse.
const LARGEST_MESSAGE: usize = 256 << 20;

/// A WebSocket to an OpAMP server in the hands of a test. It answers the server's pings, but only
/// while it is read from. Dropped, it vanishes without a Close.
#[derive(Debug)]
pub struct RawAgent {
    socket: WebSocketStream<Stream>,
}

/// An answer to the upgrade other than yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The headers; names in lower case.
    pub headers: Vec<(String, String)>,
    /// As much of the body as came with the headers.
    pub body: String,
}

impl Refusal {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }
}

impl RawAgent {
    /// Connects to `ws://HOST:PORT/PATH`; panics if the server does not want it.
    pub async fn connect(url: &str) -> Self {
        match Self::try_connect(url, &[]).await {
            Ok(agent) => agent,
            Err(refusal) => panic!("no WebSocket to {url}: {refusal:?}"),
        }
    }

    /// Connects with further headers. Panics only if there is no HTTP answer at all.
    pub async fn try_connect(url: &str, headers: &[(&str, &str)]) -> Result<Self, Refusal> {
        Self::try_connect_tls(url, headers, None).await
    }

    /// As [`try_connect`](Self::try_connect), to `wss://HOST:PORT/PATH` with this TLS.
    pub async fn try_connect_tls(
        url: &str,
        headers: &[(&str, &str)],
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, Refusal> {
        let uri: Uri = url.parse().unwrap_or_else(|error| panic!("{url}: {error}"));
        let mut request = uri.clone().into_client_request().unwrap_or_else(|error| panic!("{url}: {error}"));
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).expect("a header's name");
            request.headers_mut().append(name, HeaderValue::try_from(*value).expect("a header's value"));
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(LARGEST_MESSAGE))
            .max_frame_size(Some(LARGEST_MESSAGE));
        let attempt = async {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await.map_err(Error::Io)?;
            stream.set_nodelay(true).map_err(Error::Io)?;
            let stream = match tls {
                Some(tls) => muster_tls::connect(tls, host, stream).await.map_err(Error::Io)?,
                None => Stream::Plain(stream),
            };
            client_async_with_config(request, stream, Some(config)).await
        };
        match timeout(DEADLINE, attempt).await {
            Ok(Ok((socket, _))) => Ok(Self { socket }),
            Ok(Err(Error::Http(answer))) => {
                let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
                let headers = answer.headers().iter();
                Err(Refusal {
                    status: answer.status().as_u16(),
                    headers: headers.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
                    body: String::from_utf8_lossy(answer.body().as_deref().unwrap_or_default()).into_owned(),
                })
            }
            Ok(Err(error)) => panic!("no WebSocket to {url}: {error}"),
            Err(_) => panic!("no WebSocket to {url} within {DEADLINE:?}"),
        }
    }

    /// Sends a message.
    pub async fn send(&mut self, message: &AgentToServer) {
        self.send_raw(wire::encode(message)).await;
    }

    /// Sends a binary message as it is, without the OpAMP header.
    pub async fn send_raw(&mut self, payload: impl Into<Bytes>) {
        self.send_frame(Message::Binary(payload.into())).await;
    }

    /// Sends a text message.
    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(Message::Text(text.into())).await;
    }

    async fn send_frame(&mut self, message: Message) {
        match self.try_send_frame(message).await {
            Ok(()) => {}
            Err(error) => panic!("the message was not sent: {error}"),
        }
    }

    /// Sends a binary message as it is, to a server that may close meanwhile.
    pub async fn try_send_raw(&mut self, payload: impl Into<Bytes>) -> Result<(), String> {
        self.try_send_frame(Message::Binary(payload.into())).await
    }

    async fn try_send_frame(&mut self, message: Message) -> Result<(), String> {
        match timeout(DEADLINE, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the server takes nothing for {DEADLINE:?}")),
        }
    }

    /// Sends a message and waits for the next one of the server.
    pub async fn exchange(&mut self, message: &AgentToServer) -> ServerToAgent {
        self.send(message).await;
        self.recv().await
    }

    /// The server's next message; panics if there is none within [`DEADLINE`].
    pub async fn recv(&mut self) -> ServerToAgent {
        match self.next_within(DEADLINE).await {
            Some(message) => message,
            None => panic!("no message of the server within {DEADLINE:?}"),
        }
    }

    /// The server's next message that fits; others before it are dropped. Panics if there is none
    /// within [`DEADLINE`].
    pub async fn recv_where(&mut self, fits: impl Fn(&ServerToAgent) -> bool) -> ServerToAgent {
        let end = Instant::now() + DEADLINE;
        let mut dropped = Vec::new();
        loop {
            match self.next_until(end).await {
                Some(message) if fits(&message) => return message,
                Some(message) => dropped.push(message),
                None => panic!("no message that fits within {DEADLINE:?}, only {dropped:#?}"),
            }
        }
    }

    /// The server's next message, if there is one in time. Panics if the connection ends.
    pub async fn next_within(&mut self, limit: Duration) -> Option<ServerToAgent> {
        self.next_until(Instant::now() + limit).await
    }

    async fn next_until(&mut self, end: Instant) -> Option<ServerToAgent> {
        loop {
            match timeout_at(end, self.socket.next()).await.ok()? {
                Some(Ok(Message::Binary(payload))) => match wire::decode(payload) {
                    Ok(message) => return Some(message),
                    Err(error) => panic!("the server sent something else: {error}"),
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(frame))) => panic!("the server closed: {frame:?}"),
                Some(Ok(other)) => panic!("the server sent something else: {other:?}"),
                Some(Err(error)) => panic!("the connection broke: {error}"),
                None => panic!("the connection ended"),
            }
        }
    }

    /// Waits for the end of the connection and returns the code of the server's Close: 1005 if it
    /// has none, 1006 if there is no Close. Messages before it are dropped.
    pub async fn recv_close(&mut self) -> u16 {
        let end = Instant::now() + DEADLINE;
        loop {
            match timeout_at(end, self.socket.next()).await {
                Ok(Some(Ok(Message::Close(frame)))) => {
                    let _ = timeout_at(end, self.socket.flush()).await;
                    return frame.map_or(1005, |frame| frame.code.into());
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_)) | None) => return 1006,
                Err(_) => panic!("the server does not close within {DEADLINE:?}"),
            }
        }
    }

    /// Sends a Close with this code and waits for the server's.
    pub async fn close(&mut self, code: u16) -> u16 {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        self.send_frame(Message::Close(Some(frame))).await;
        self.recv_close().await
    }
}
