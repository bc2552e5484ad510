//! Active messages over ZeroMQ: a message names a handler, and the handler runs, inline, on the
//! pinned core that read it.
//!
//! (more to come)

// What people read from a service's output is the service's to decide.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod client;
pub mod codec;
pub mod config;
pub mod engine;
pub mod error;
pub mod handler;
pub mod metrics;
pub mod peers;
pub mod placement;
pub mod route;
pub mod runtime;
pub mod shard;
pub mod wire;

pub use config::Config;
pub use runtime::Runtime;
