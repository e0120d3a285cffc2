//! The pure decisions of Muster: what an agent's state is, what it should run, and why.
//!
//! Nothing here does I/O, reads a clock or draws a random number: time and identifiers are
//! arguments, and a decision returns its reason.

pub mod access;
pub mod agent;
pub mod audit;
pub mod budget;
pub mod capabilities;
pub mod command;
pub mod credential;
pub mod desired;
pub mod drift;
pub mod duplicates;
pub mod ids;
pub mod intent;
pub mod liveness;
pub mod manifest;
pub mod membership;
pub mod network;
pub mod poll;
pub mod preflight;
mod recent;
pub mod reconcile;
pub mod report;
pub mod rollout;
pub mod selector;
pub mod sequence;
pub mod template;
pub mod tenant;
pub mod token;
pub mod yaml;
