//! The network between an agent and a gateway: a stream that may break in all the ways there are, with an
//! ear at the gateway's end, and the agent's side of the WebSocket framing.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use muster_proto::Message;
use muster_proto::opamp::ServerToAgent;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use crate::world::World;

/// Bytes that the network holds each way.
const CAPACITY: usize = 1 << 16;
/// The mask of every frame: it is only to be there.
const MASK: [u8; 4] = [0x13, 0x57, 0x9b, 0xdf];

/// WebSocket opcodes.
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Number of a connection.
pub(crate) type Conn = u32;

/// The address that an agent has on a connection; no other has it.
pub(crate) fn address(conn: Conn) -> SocketAddr {
    (Ipv4Addr::from(0x0a00_0000 + conn), 4000).into()
}

/// How a connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// The gateway is told, and what it has not read is lost.
    Reset = 1,
    /// The gateway hears nothing, ever.
    Silence = 2,
}

/// What breaks a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cable(Arc<AtomicU8>);

impl Cable {
    /// Breaks it; the agent's end is to be dropped after.
    pub(crate) fn cut(&self, how: Break) {
        self.0.store(how as u8, Ordering::Relaxed);
    }

    fn is(&self, how: Break) -> bool {
        self.0.load(Ordering::Relaxed) == how as u8
    }
}

/// Both ends of a new connection.
pub(crate) fn connect(world: &Arc<World>, conn: Conn) -> (AgentEnd, GatewayEnd) {
    let (near, far) = tokio::io::duplex(CAPACITY);
    let cable = Cable::default();
    let gateway = GatewayEnd {
        stream: far,
        cable: cable.clone(),
        world: Arc::clone(world),
        peer: address(conn).to_string(),
        heard: BytesMut::new(),
    };
    (AgentEnd { stream: near, cable, input: BytesMut::new() }, gateway)
}

/// The gateway's end.
pub(crate) struct GatewayEnd {
    stream: DuplexStream,
    cable: Cable,
    world: Arc<World>,
    peer: String,
    /// What was written and is not a whole frame yet.
    heard: BytesMut,
}

impl GatewayEnd {
    /// Tells the checker of every message that the gateway has written.
    fn hear(&mut self, written: &[u8]) {
        self.heard.extend_from_slice(written);
        while let Some((opcode, payload)) = take_frame(&mut self.heard) {
            if opcode == BINARY
                && let Some(message) = payload.get(1..).and_then(|body| ServerToAgent::decode(body).ok())
            {
                self.world.check(|checker| checker.written(&self.peer, &message));
            }
        }
    }
}

impl AsyncRead for GatewayEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cable.is(Break::Reset) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.cable.is(Break::Silence) {
            // The gateway has timers of its own.
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        match self.cable.is(Break::Silence) {
            true => Poll::Pending,
            false => polled,
        }
    }
}

impl AsyncWrite for GatewayEnd {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.cable.is(Break::Reset) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.cable.is(Break::Silence) {
            // The kernel takes it, and nobody ever acknowledges it.
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.hear(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What an agent receives.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Box<ServerToAgent>),
    Ping(Bytes),
    /// With the code.
    Close(u16),
    Other,
}

/// The agent's end.
pub(crate) struct AgentEnd {
    stream: DuplexStream,
    cable: Cable,
    input: BytesMut,
}

impl AgentEnd {
    /// What breaks this connection.
    pub(crate) fn cable(&self) -> Cable {
        self.cable.clone()
    }

    /// The next frame. Cancelling the wait loses nothing.
    pub(crate) async fn receive(&mut self) -> io::Result<Received> {
        loop {
            if let Some((opcode, payload)) = take_frame(&mut self.input) {
                return Ok(match opcode {
                    BINARY => {
                        let body = payload.get(1..).unwrap_or_default();
                        Received::Message(Box::new(ServerToAgent::decode(body).map_err(io::Error::other)?))
                    }
                    PING => Received::Ping(payload),
                    CLOSE => Received::Close(payload.first_chunk().copied().map_or(0, u16::from_be_bytes)),
                    _ => Received::Other,
                });
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends an encoded message.
    pub(crate) async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let payload = [&[0], message].concat();
        self.stream.write_all(&frame(BINARY, &payload)).await
    }

    /// Answers a ping.
    pub(crate) async fn pong(&mut self, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&frame(PONG, payload)).await
    }

    /// Says Close with 1000.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.stream.write_all(&frame(CLOSE, &1000_u16.to_be_bytes())).await
    }
}

/// A frame of a client.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 14);
    frame.push(0x80 | opcode);
    match payload.len() {
        // Each length is in the range of its form.
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.put_u16(length as u16);
        }
        length => {
            frame.push(0x80 | 127);
            frame.put_u64(length as u64);
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Takes the first frame of a server off the input, if all of it is there.
fn take_frame(input: &mut BytesMut) -> Option<(u8, Bytes)> {
    let (first, second) = (*input.first()?, *input.get(1)?);
    let (length, head) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(*input.get(2..)?.first_chunk()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(*input.get(2..)?.first_chunk()?)).ok()?, 10),
        length => (usize::from(length), 2),
    };
    if input.len() < head + length {
        return None;
    }
    input.advance(head);
    Some((first & 0x0f, input.split_to(length).freeze()))
}
