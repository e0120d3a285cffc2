//! OpAMP messages as WebSocket messages: a varint header of zero, then protobuf.

use bytes::{BufMut, Bytes, BytesMut};
use muster_proto::{DecodeError, Message};

/// Why a WebSocket message is not an OpAMP message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The header is missing or not zero.
    #[error("the message does not start with a header of zero")]
    Header,
    /// What follows the header is not the protobuf that was expected.
    #[error("the message is not the expected protobuf")]
    Body(#[from] DecodeError),
}

/// The payload of the WebSocket message that carries `message`.
pub fn encode(message: &impl Message) -> Bytes {
    let mut payload = BytesMut::with_capacity(1 + message.encoded_len());
    payload.put_u8(0);
    payload.put(message.encode_to_vec().as_slice());
    payload.freeze()
}

/// The OpAMP message in a WebSocket message. Its larger fields share the payload's memory.
pub fn decode<M: Message + Default>(mut payload: Bytes) -> Result<M, WireError> {
    if payload.first() != Some(&0) {
        return Err(WireError::Header);
    }
    Ok(M::decode(payload.split_off(1))?)
}

/// Bytes as lower-case hexadecimal digits, as Muster's API writes hashes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use muster_proto::opamp::AgentToServer;

    use super::*;

    #[test]
    fn a_message_survives_its_way() {
        let message = AgentToServer { instance_uid: vec![7; 16], sequence_num: 3, ..Default::default() };
        let payload = encode(&message);
        assert_eq!(payload[0], 0);
        assert_eq!(decode::<AgentToServer>(payload).unwrap(), message);
    }

    #[test]
    fn other_payloads_are_refused() {
        assert!(matches!(decode::<AgentToServer>(Bytes::new()), Err(WireError::Header)));
        assert!(matches!(decode::<AgentToServer>(Bytes::from_static(&[1])), Err(WireError::Header)));
        assert!(matches!(decode::<AgentToServer>(Bytes::from_static(&[0, 0xff])), Err(WireError::Body(_))));
    }

    #[test]
    fn hexadecimal_digits_keep_leading_zeros() {
        assert_eq!(hex(&[0x00, 0x0a, 0xff]), "000aff");
    }
}
