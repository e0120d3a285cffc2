//! The wire formats of Muster and the Rust types made from them.
//!
//! [`opamp`] is the OpenTelemetry Agent Management Protocol as agents speak it; [`bus`] is what
//! travels between Muster's own roles. Both are additive: a field is never renumbered or reused.

pub use prost::encoding;
pub use prost::{DecodeError, Message};

/// OpAMP messages (package `opamp.proto`), from the specification's message tables.
#[expect(missing_docs, clippy::all, reason = "generated code")]
pub mod opamp {
    include!(concat!(env!("OUT_DIR"), "/opamp.proto.rs"));
}

/// Messages on Muster's bus: log envelopes, deliveries to gateways, requests between roles.
#[expect(missing_docs, clippy::all, reason = "generated code")]
pub mod bus {
    include!(concat!(env!("OUT_DIR"), "/muster.bus.v1.rs"));
}
