//! The server side of a WebSocket that holds no buffer while nothing is on its way.
//!
//! A fleet's connections are idle nearly all the time, so what one keeps while idle is what a fleet
//! costs. The library keeps a read buffer a connection; here one lives from the first byte of a
//! message to its last. Headers and the handshake's key are the library's.

use std::future::poll_fn;
use std::io::{self, Cursor};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::ready;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Bytes read at once.
const READ: usize = 4096;
/// A buffer grows by no more than this ahead of the bytes that have come, whatever a header says.
const GROW: usize = 256 << 10;
/// Longest payload of a control frame (RFC 6455, section 5.5).
const MAX_CONTROL: u64 = 125;

/// Close codes (RFC 6455, section 7.4.1, and its registry).
pub(crate) mod code {
    pub(crate) const NORMAL: u16 = 1000;
    pub(crate) const PROTOCOL: u16 = 1002;
    pub(crate) const UNSUPPORTED: u16 = 1003;
    pub(crate) const POLICY: u16 = 1008;
    pub(crate) const SIZE: u16 = 1009;
    pub(crate) const SERVICE_RESTART: u16 = 1012;
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Received {
    /// A whole binary message.
    Binary(Bytes),
    /// A ping, to be answered with its payload.
    Ping(Bytes),
    /// A pong.
    Pong,
    /// The peer closes; the code is to be echoed.
    Close(Option<u16>),
}

/// Why nothing more can be received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The peer is gone.
    #[error("the connection is gone")]
    Gone(#[source] io::Error),
    /// A message is larger than allowed.
    #[error("a message is larger than {0} bytes")]
    TooLarge(usize),
    /// A text message.
    #[error("OpAMP messages are binary")]
    Text,
    /// The peer does not keep to the protocol.
    #[error("the WebSocket frame is malformed: {0}")]
    Protocol(&'static str),
}

/// A WebSocket after its handshake.
pub(crate) struct Socket<S> {
    stream: S,
    decoder: Decoder,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A socket on a stream of which `read` was read already.
    pub(crate) fn new(stream: S, read: &[u8], max_message: usize) -> Self {
        Self { stream, decoder: Decoder { input: BytesMut::from(read), message: None, max_message } }
    }

    /// The next message or control frame. Cancelling the wait loses nothing.
    pub(crate) async fn recv(&mut self) -> Result<Received, SocketError> {
        loop {
            if let Some(received) = self.decoder.next()? {
                return Ok(received);
            }
            let read = if self.decoder.input.is_empty() {
                self.first().await
            } else {
                self.decoder.input.reserve(READ);
                self.stream.read_buf(&mut self.decoder.input).await
            };
            if read.map_err(SocketError::Gone)? == 0 {
                return Err(SocketError::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads the first bytes of a message; their number. Nothing is held while waiting for them: they
    /// come by way of the stack.
    async fn first(&mut self) -> io::Result<usize> {
        let Self { stream, decoder } = self;
        decoder.input = BytesMut::new();
        poll_fn(|context| {
            let mut space = [MaybeUninit::uninit(); READ];
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
            decoder.input.extend_from_slice(read.filled());
            Ok(read.filled().len()).into()
        })
        .await
    }

    /// Sends a binary message that is these parts, one after the other.
    pub(crate) async fn send(&mut self, parts: [&[u8]; 2]) -> io::Result<()> {
        let [first, second] = parts;
        let length = first.len() + second.len();
        let mut head = header(OpCode::Data(Data::Binary), length)?;
        head.extend_from_slice(first);
        if second.len() <= READ {
            head.extend_from_slice(second);
            self.stream.write_all(&head).await?;
        } else {
            // What many agents share is not copied for each.
            self.stream.write_all(&head).await?;
            self.stream.write_all(second).await?;
        }
        // A stream of TLS may hold back what it has taken.
        self.stream.flush().await
    }

    /// Sends a ping.
    pub(crate) async fn ping(&mut self) -> io::Result<()> {
        self.control(Control::Ping, &[]).await
    }

    /// Answers a ping.
    pub(crate) async fn pong(&mut self, payload: &[u8]) -> io::Result<()> {
        self.control(Control::Pong, payload).await
    }

    /// Says that this side closes, with a reason for people of at most 123 bytes.
    pub(crate) async fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        let reason = &reason.as_bytes()[..reason.floor_char_boundary(123)];
        self.control(Control::Close, &[&code.to_be_bytes(), reason].concat()).await
    }

    /// Closes the stream for writing, then reads until the peer ends it, to no use.
    pub(crate) async fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut nothing = vec![0; READ];
        while self.stream.read(&mut nothing).await? > 0 {}
        Ok(())
    }

    async fn control(&mut self, kind: Control, payload: &[u8]) -> io::Result<()> {
        let mut frame = header(OpCode::Control(kind), payload.len())?;
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).await?;
        self.stream.flush().await
    }
}

fn header(opcode: OpCode, length: usize) -> io::Result<Vec<u8>> {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    let mut out = Vec::with_capacity(64);
    header.format(length as u64, &mut out).map_err(io::Error::other)?;
    Ok(out)
}

/// Frames from bytes, without I/O.
struct Decoder {
    /// Bytes that are not taken yet.
    input: BytesMut,
    /// A message whose last fragment has not come.
    message: Option<BytesMut>,
    max_message: usize,
}

impl Decoder {
    /// The next whole message or control frame in the input.
    fn next(&mut self) -> Result<Option<Received>, SocketError> {
        loop {
            let Some((header, length, head)) = self.header()? else { return Ok(None) };
            let whole = head + length;
            if self.input.len() < whole {
                let missing = whole - self.input.len();
                self.input.reserve(missing.min(GROW));
                return Ok(None);
            }
            self.input.advance(head);
            let mut payload = self.input.split_to(length);
            if let Some(mask) = header.mask {
                unmask(&mut payload, mask);
            }
            match header.opcode {
                OpCode::Control(Control::Ping) => return Ok(Some(Received::Ping(payload.freeze()))),
                OpCode::Control(Control::Pong) => return Ok(Some(Received::Pong)),
                OpCode::Control(Control::Close) => return close_code(&payload).map(Some),
                OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_)) => {
                    return Err(SocketError::Protocol("an unknown opcode"));
                }
                OpCode::Data(Data::Text) => return Err(SocketError::Text),
                OpCode::Data(Data::Binary | Data::Continue) => {
                    if let Some(message) = self.fragment(&header, payload) {
                        return Ok(Some(Received::Binary(message)));
                    }
                }
            }
        }
    }

    /// The header of the next frame, its payload's length and its own.
    fn header(&self) -> Result<Option<(FrameHeader, usize, usize)>, SocketError> {
        let mut cursor = Cursor::new(&self.input[..]);
        let parsed =
            FrameHeader::parse(&mut cursor).map_err(|_| SocketError::Protocol("an impossible header"))?;
        let Some((header, length)) = parsed else { return Ok(None) };
        // A header is at most 14 bytes long.
        let head = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(SocketError::Protocol("a reserved bit is set, and no extension was agreed on"));
        }
        if header.mask.is_none() {
            return Err(SocketError::Protocol("a client's frame is not masked"));
        }
        match header.opcode {
            OpCode::Control(_) if length > MAX_CONTROL || !header.is_final => {
                return Err(SocketError::Protocol("a control frame is too long or fragmented"));
            }
            OpCode::Data(Data::Continue) if self.message.is_none() => {
                return Err(SocketError::Protocol("a continuation of nothing"));
            }
            OpCode::Data(Data::Binary | Data::Text) if self.message.is_some() => {
                return Err(SocketError::Protocol("a message begins inside another"));
            }
            _ => {}
        }
        let before = self.message.as_ref().map_or(0, BytesMut::len);
        match usize::try_from(length).ok().filter(|length| length.saturating_add(before) <= self.max_message)
        {
            Some(length) => Ok(Some((header, length, head))),
            None if matches!(header.opcode, OpCode::Control(_)) => Ok(Some((header, length as usize, head))),
            None => Err(SocketError::TooLarge(self.max_message)),
        }
    }

    /// Adds a fragment; gives the message if it was the last.
    fn fragment(&mut self, header: &FrameHeader, payload: BytesMut) -> Option<Bytes> {
        match (self.message.take(), header.is_final) {
            (None, true) => Some(payload.freeze()),
            (None, false) => {
                self.message = Some(payload);
                None
            }
            (Some(mut message), last) => {
                message.extend_from_slice(&payload);
                if last {
                    return Some(message.freeze());
                }
                self.message = Some(message);
                None
            }
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let (words, rest) = payload.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

fn close_code(payload: &[u8]) -> Result<Received, SocketError> {
    match payload {
        [] => Ok(Received::Close(None)),
        [high, low, ..] => Ok(Received::Close(Some(u16::from_be_bytes([*high, *low])))),
        [_] => Err(SocketError::Protocol("a close code of one byte")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoder(max_message: usize) -> Decoder {
        Decoder { input: BytesMut::new(), message: None, max_message }
    }

    fn frame(opcode: OpCode, is_final: bool, payload: &[u8]) -> Vec<u8> {
        let mask = Some([1, 2, 3, 4]);
        let header = FrameHeader { opcode, is_final, mask, ..FrameHeader::default() };
        let mut bytes = Vec::new();
        header.format(payload.len() as u64, &mut bytes).unwrap();
        let mut masked = payload.to_vec();
        unmask(&mut masked, [1, 2, 3, 4]);
        bytes.extend(masked);
        bytes
    }

    fn binary(payload: &[u8]) -> Vec<u8> {
        frame(OpCode::Data(Data::Binary), true, payload)
    }

    fn error(bytes: &[u8]) -> String {
        let mut decoder = decoder(1000);
        decoder.input.extend_from_slice(bytes);
        loop {
            match decoder.next() {
                Ok(Some(_)) => {}
                Ok(None) => return "more".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    }

    #[test]
    fn fragments_become_one_message_with_control_frames_between() {
        let mut decoder = decoder(1000);
        decoder.input.extend(frame(OpCode::Data(Data::Binary), false, b"one "));
        decoder.input.extend(frame(OpCode::Control(Control::Ping), true, b"p"));
        decoder.input.extend(frame(OpCode::Data(Data::Continue), false, b"two "));
        decoder.input.extend(frame(OpCode::Data(Data::Continue), true, b"three"));
        decoder.input.extend(frame(OpCode::Control(Control::Close), true, &[3, 232]));
        assert_eq!(decoder.next().unwrap(), Some(Received::Ping(Bytes::from_static(b"p"))));
        assert_eq!(decoder.next().unwrap(), Some(Received::Binary(Bytes::from_static(b"one two three"))));
        assert_eq!(decoder.next().unwrap(), Some(Received::Close(Some(1000))));
        assert_eq!(decoder.next().unwrap(), None);
        assert!(decoder.input.is_empty());
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        let data = OpCode::Data(Data::Continue);
        assert_eq!(
            error(&frame(data, true, b"x")),
            "the WebSocket frame is malformed: a continuation of nothing"
        );
        let nested = [frame(OpCode::Data(Data::Binary), false, b"x"), binary(b"y")].concat();
        assert_eq!(error(&nested), "the WebSocket frame is malformed: a message begins inside another");
        let long = frame(OpCode::Control(Control::Ping), true, &[0; 126]);
        assert!(error(&long).ends_with("a control frame is too long or fragmented"));
        assert_eq!(error(&frame(OpCode::Data(Data::Text), true, b"x")), "OpAMP messages are binary");
        assert!(error(&[0x82, 1, b'x']).ends_with("a client's frame is not masked"));
        assert!(
            error(&[0xc2, 0x81]).ends_with("more")
                || error(&[0xc2, 0x80, 0, 0, 0, 0]).contains("reserved bit")
        );
        assert!(
            error(&frame(OpCode::Control(Control::Close), true, &[3])).ends_with("a close code of one byte")
        );
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_header_and_by_its_sum() {
        assert_eq!(error(&binary(&[0; 1001])[..8]), "a message is larger than 1000 bytes");
        let parts = [
            frame(OpCode::Data(Data::Binary), false, &[0; 600]),
            frame(OpCode::Data(Data::Continue), true, &[0; 600]),
        ];
        assert_eq!(error(&parts.concat()), "a message is larger than 1000 bytes");
        assert_eq!(error(&binary(&[0; 1000])), "more");
    }

    #[tokio::test]
    async fn nothing_is_held_while_nothing_comes() {
        let (mut peer, stream) = tokio::io::duplex(1 << 20);
        let mut socket = Socket::new(stream, &binary(b"read with the handshake"), 1 << 20);
        let long = vec![7; 100_000];
        peer.write_all(&[binary(b"short"), binary(&long)].concat()).await.unwrap();
        for expected in [&b"read with the handshake"[..], b"short", &long] {
            let received = socket.recv().await.unwrap();
            assert_eq!(received, Received::Binary(Bytes::copy_from_slice(expected)));
        }
        tokio::select! {
            biased;
            received = socket.recv() => unreachable!("{received:?}"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(socket.decoder.input.capacity(), 0);
    }

    proptest! {
        /// However the bytes are cut, the same messages come out.
        #[test]
        fn cuts_do_not_matter(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
            cut in 1_usize..50,
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|payload| binary(payload)).collect();
            let mut decoder = decoder(1000);
            let mut found = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.input.extend_from_slice(piece);
                while let Some(Received::Binary(message)) = decoder.next().unwrap() {
                    found.push(message.to_vec());
                }
            }
            prop_assert_eq!(found, payloads);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            error(&bytes);
        }
    }
}
