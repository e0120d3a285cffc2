//! The server side of OpAMP without I/O: inputs and the time go in, outputs are polled out.

pub mod bounds;
pub mod connection;
pub mod frame;
pub mod head;
pub mod poll;
mod refusal;
mod rekeying;
pub mod reply;
mod session;
mod timing;
mod unsent;
