//! Signed tokens (JWT) of issuers: who has signed them, with which key, and what they must say.
//!
//! [`verify`] is pure: keys, rules and time are arguments. [`Issuer`] fetches an issuer's keys and keeps them.
//! A token of an issuer is signed with a key pair, whose kind decides which algorithms count; a shared secret is
//! taken only where it was configured as one. So no token can choose how it is checked.

mod issuer;
mod keys;
mod verify;

pub use issuer::{Issuer, IssuerError, Location, VerifyError};
pub use keys::{KeyError, KeySet};
pub use verify::{Claims, MAX_TOKEN, Refused, Rules, verify};
