//! The ports on real engines, a module for each.

pub mod nats;
pub mod postgres;
pub mod redis;
pub mod sqlite;
