//! Simulated OpAMP agents, many in one process.
//!
//! Every agent speaks the protocol over a WebSocket of its own, or polls over plain HTTP where the address
//! begins with `http://`, and behaves as the opamp-go client does: full state once, then only what
//! changed; reconnecting without it; heartbeats; APPLYING, then APPLIED or FAILED. What an agent is and does follows from the fleet's seed and the agent's
//! index, so two runs show the same fleet.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use muster_fleet::{Fleet, FleetOptions};
//! use tokio_util::sync::CancellationToken;
//!
//! let mut options = FleetOptions::new("ws://127.0.0.1:4320/v1/opamp");
//! options.count = 1000;
//! let fleet = Fleet::start(options, CancellationToken::new())?;
//! fleet.wait(|stats| stats.connected == 1000, Duration::from_secs(10)).await?;
//! fleet.stop().await;
//! # Ok(())
//! # }
//! ```

mod agent;
mod backoff;
mod config;
mod connect;
mod fleet;
mod health;
mod identity;
mod kind;
mod options;
mod polling;
mod runner;
mod stats;
pub mod wire;

pub use config::ConfigFiles;
pub use fleet::{AgentView, Fleet, WaitTimeout};
pub use kind::{Kind, Mix};
pub use options::{FleetError, FleetOptions, Observer, Rejects};
pub use stats::Stats;
