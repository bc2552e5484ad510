//! Active messages over ZeroMQ: a message names a handler, and the handler runs, inline, on the
//! pinned core that read it.
//!
//! ```text
//! peer ──ZMTP──► engine ─► decode header ─► registry ─┬─ inline: called here, the reply encoded
//!                (sockets owned by one shard)         │  into the connection's own write buffer
//!                                                     ├─ other shard: one ring there, one back
//!                                                     ├─ spawned: a local task on this shard
//!                                                     └─ blocking: a pool of threads elsewhere
//! ```
//!
//! The paved path: [`Config`] → [`Runtime`] with [handlers](handler) → [`Client`](client::Client) →
//! [`Peer`](client::Peer) → a message. The modules below it are public for those who build
//! engines, peers in other languages, or tests under a virtual clock.
//!
//! - [`handler`]: what runs, and how it is made per shard.
//! - [`client`]: sending, in three delivery modes.
//! - [`events`]: peers that come, drain and go, for a program that wants to be told.
//! - [`config`], [`placement`]: which CPUs, which endpoints, which limits.
//! - [`metrics`]: counters, histograms, dumps.
//! - [`wire`], [`codec`]: the bytes.
//! - [`engine`], [`route`], [`peers`], [`shard`], [`runtime`]: what it is made of;
//!   `docs/architecture.md` says how it fits together.
//!
//! Linux with io_uring (5.8 or later) only. Nothing here needs or starts tokio.

// What people read from a service's output is the service's to decide.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod client;
pub mod codec;
pub mod config;
pub mod engine;
pub mod error;
pub mod events;
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

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
