//! (being written)
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
