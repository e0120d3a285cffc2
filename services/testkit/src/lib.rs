//! Real servers and real clients for tests: Muster as a process on ports of its own, the [`engines`] of
//! a cluster, agents that a test drives by hand, and agents on real clients.
//!
//! Everything here is for tests: what goes wrong ends the test with a message that says what was
//! waited for and what the process said. Every wait has a deadline.
//!
//! ```no_run
//! # async fn example() {
//! use muster_testkit::{Muster, RawAgent, messages};
//!
//! // In a test of the package that has the binary: env!("CARGO_BIN_EXE_muster").
//! let muster = Muster::builder("target/debug/muster").start().await;
//! let uid = messages::new_uid();
//! let mut agent = RawAgent::connect(&muster.opamp_url()).await;
//! agent.send(&messages::first_report(uid, &[("service.name", "checkout")])).await;
//! let reply = agent.recv().await;
//! assert_eq!(reply.instance_uid, uid.as_bytes());
//! muster.cli(&["agents", "list"]).await.expect_success();
//! # }
//! ```

#![expect(clippy::expect_used, clippy::panic, reason = "a library for tests, which end with its panics")]

mod api;
mod certificates;
mod cli;
mod client_agent;
pub mod engines;
mod eventually;
pub mod fakes;
mod go;
pub mod messages;
mod metrics;
mod muster;
mod output;
mod poller;
mod ports;
mod raw_agent;
mod scripts;
mod signal;
mod skip;

pub use api::{Api, ApiError};
pub use certificates::Certificates;
pub use cli::CliOutput;
pub use client_agent::{ClientAgent, ClientAgentBuilder};
pub use eventually::{eventually, try_eventually};
pub use go::{Go, go_or_skip};
pub use metrics::Metrics;
pub use muster::{Muster, MusterBuilder, StartError};
pub use poller::{Answer, Poller, gunzip, gzip};
pub use ports::free_ports;
pub use raw_agent::{RawAgent, Refusal};
pub use scripts::{issuer_or_skip, node_or_skip, python_or_skip};

use std::time::Duration;

/// How long tests wait for what should happen within moments, on a machine that is busy.
pub const DEADLINE: Duration = Duration::from_secs(20);
