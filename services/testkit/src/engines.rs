//! The engines of a cluster as real servers for tests: NATS, Redis and Postgres, each a child process
//! on a free port with its data in a temporary directory.
//!
//! ```no_run
//! # async fn example() {
//! use muster_testkit::engines::{Engine, Nats, Postgres, engines_or_skip};
//!
//! if !engines_or_skip(&[Engine::Nats, Engine::Postgres]) {
//!     return;
//! }
//! let mut nats = Nats::start().await;
//! let postgres = Postgres::builder().without_fsync().start().await;
//! let database = postgres.database().await;
//! nats.kill9().await;
//! nats.restart().await;
//! # }
//! ```
//!
//! A server ends with the value that stands for it. It also ends, and its directory goes away, with the
//! test process, however that ends: so a server in a `static`, which is never dropped, may be shared by
//! all tests of a process. It depends on no async runtime of theirs.

mod nats;
mod postgres;
mod programs;
mod redis;
mod server;

pub use nats::{Nats, NatsCluster};
pub use postgres::{Postgres, PostgresBuilder};
pub use programs::{Engine, engines_or_skip};
pub use redis::{Redis, RedisBuilder};
pub use server::Server;
