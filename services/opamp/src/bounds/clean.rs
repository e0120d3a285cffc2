//! Replaces NUL in texts: not every store can hold it.

use bytes::{BufMut, Bytes, BytesMut};
use muster_proto::encoding::{WireType, encode_key, encode_varint};

use super::shapes::{AGENT_TO_SERVER, Kind, Shape};
use super::{MAX_DEPTH, Value, next};

/// The message with U+FFFD in the place of each NUL in a text; all else is as it was, unknown fields
/// too. The message has passed [`super::check`].
pub(crate) fn clean(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 64);
    clean_message(&AGENT_TO_SERVER, message, MAX_DEPTH, &mut out);
    out.freeze()
}

fn clean_message(shape: &Shape, mut rest: &[u8], depth: usize, out: &mut BytesMut) {
    while !rest.is_empty() {
        let before = rest;
        let Ok((number, value)) = next(&mut rest, depth) else {
            out.put_slice(before);
            return;
        };
        let field = shape.find(number).map(|field| &field.kind);
        match (field, value) {
            (Some(Kind::Text), Value::Payload(payload)) if payload.contains(&0) => {
                let text = String::from_utf8_lossy(payload).replace('\0', "\u{fffd}");
                put(number, text.as_bytes(), out);
            }
            (Some(Kind::Message(shape)), Value::Payload(payload)) => {
                let mut inner = BytesMut::with_capacity(payload.len());
                clean_message(shape, payload, depth.saturating_sub(1), &mut inner);
                put(number, &inner, out);
            }
            _ => out.put_slice(&before[..before.len() - rest.len()]),
        }
    }
}

fn put(number: u32, payload: &[u8], out: &mut BytesMut) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(payload.len() as u64, out);
    out.put_slice(payload);
}
