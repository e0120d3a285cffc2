//! The Muster program: configuration, telemetry, composition of the roles, command line.

pub mod cli;
pub mod config;
pub mod demo;
pub mod engines;
mod first_token;
mod people;
pub mod program;
pub mod serve;
pub mod telemetry;
mod tls;
