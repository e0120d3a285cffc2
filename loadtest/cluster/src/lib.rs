//! A whole cluster as local processes, the topology of docker-compose.yml: to try it, to break it and to
//! measure it.
//!
//! [`Cluster`] starts NATS, Redis, Postgres and every role of Muster as a process of its own on
//! 127.0.0.1, with a small TCP balancer in front of the gateways. [`faults`] breaks a part of it under
//! load and compares what agents saw with what the store says; [`bench`] measures it.

#![expect(clippy::panic, reason = "for tests and measurements, which end with its panics")]

pub mod bench;
mod check;
mod cluster;
pub mod faults;
mod manifests;
mod process;
pub mod reporter;
pub mod status;
mod tcp;
mod usage;

pub use check::{Apis, Listed};
pub use cluster::{Cluster, ClusterOptions, NatsServers, muster_program};
pub use process::{Process, Role};
pub use tcp::{Balancer, Line};
pub use usage::Usage;
