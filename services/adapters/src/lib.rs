//! Engines behind the ports that need a driver, a module each.

pub mod sqlite;
