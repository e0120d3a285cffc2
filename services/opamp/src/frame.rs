//! OpAMP's WebSocket framing: a varint header that is zero, then the message (specification,
//! "WebSocket Message Format").

use bytes::{BufMut, Bytes, BytesMut};
use muster_proto::Message;
use muster_proto::opamp::ServerToAgent;

/// A WebSocket message that is not an OpAMP message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// There is not even a header.
    #[error("the message is empty: a WebSocket message begins with the header byte 0")]
    Empty,
    /// The header is not zero, and the bytes cannot be a message of a client without header.
    #[error("the header is {0:#04x}: this server knows only 0")]
    UnknownHeader(u8),
}

/// First bytes that can only be the tag of a field of AgentToServer: fields 1 to 15 with the wire
/// type that each has (4, 2 and 10 are numbers, the rest has a length).
fn is_agent_to_server_tag(byte: u8) -> bool {
    let (field, wire_type) = (byte >> 3, byte & 7);
    match field {
        2 | 4 | 10 => wire_type == 0,
        1..=15 => wire_type == 2,
        _ => false,
    }
}

/// Takes the header off. Older clients send none: theirs begin with a field's tag.
///
/// # Errors
/// If there is neither header nor tag.
pub fn decode(frame: &Bytes) -> Result<Bytes, FrameError> {
    match frame.first() {
        None => Err(FrameError::Empty),
        Some(0) => Ok(frame.slice(1..)),
        Some(byte) if is_agent_to_server_tag(*byte) => Ok(frame.clone()),
        Some(byte) => Err(FrameError::UnknownHeader(*byte)),
    }
}

/// Header and message as the bytes of one WebSocket message.
pub fn encode(message: &ServerToAgent) -> Bytes {
    let mut frame = BytesMut::with_capacity(1 + message.encoded_len());
    frame.put_u8(0);
    // BytesMut grows as needed, so encoding cannot run out of room.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let decode = |bytes: &'static [u8]| super::decode(&Bytes::from_static(bytes));
        assert_eq!(decode(&[0, 10, 0]), Ok(Bytes::from_static(&[10, 0])));
        assert_eq!(decode(&[0]), Ok(Bytes::new()));
        assert_eq!(decode(&[10, 0]), Ok(Bytes::from_static(&[10, 0])), "a client without header");
        assert_eq!(decode(&[]), Err(FrameError::Empty));
        for header in [1, 2, 5, 7, 8, 0x80, 0xff] {
            assert_eq!(
                super::decode(&Bytes::from(vec![header, 10, 0])),
                Err(FrameError::UnknownHeader(header))
            );
        }
    }
}
