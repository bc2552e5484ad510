//! What runs when a message arrives.
//!
//! A handler is made once per shard, so its state needs no lock. Most run *inline*: the reactor
//! calls the function in the turn that read the message, and the reply is encoded into the
//! connection's own write buffer.
//!
//! | kind | runs | for | its state |
//! |---|---|---|---|
//! | [`inline()`] | in the reactor's turn, on the shard that read the message | a few microseconds, no await | the shard's own |
//! | [`spawned()`] | a local task on that shard, at most `limits.spawned_max` | awaits | the shard's own |
//! | [`batched()`] | in a turn, once for many messages of that shard | amortized work | the shard's own |
//! | [`blocking()`] | a thread of the process's pool of `blocking.threads` | long or blocking work | shared |
//!
//! ```
//! use corelane::handler::{
//!     Batch, HandlerError, Item, batched, blocking, inline, inline_in_place, inline_raw,
//!     inline_with, spawned,
//! };
//!
//! #[derive(serde::Deserialize)]
//! struct Sum { a: i64, b: i64 }
//! #[derive(serde::Serialize)]
//! struct Total { total: i64 }
//!
//! // Typed: JSON or postcard, whichever the request names.
//! let sum = inline("sum", |sum: Sum, _cx| Ok(Total { total: sum.a + sum.b }));
//! // Bytes in, bytes into the write buffer.
//! let echo = inline_raw("echo", |payload, reply, _cx| {
//!     reply.extend_from_slice(payload);
//!     Ok(())
//! });
//! // In place: the reply is the first part of the buffer that the request came in.
//! let reverse = inline_in_place("reverse", |payload, _cx| {
//!     payload.reverse();
//!     Ok(payload.len())
//! });
//! // With state of the shard's own, made by a factory.
//! let count = inline_with("count", |_shard| {
//!     let mut count = 0_u64;
//!     move |(): (), _cx| {
//!         count += 1;
//!         Ok(count)
//!     }
//! });
//! // One state for the whole process: all its messages run on one shard.
//! let next = inline_with("next", |_shard| {
//!     let mut last = 0_u64;
//!     move |(): (), _cx| {
//!         last += 1;
//!         Ok(last)
//!     }
//! })
//! .on_shard(0);
//! // One state per key: each message runs on the shard that its route key belongs to.
//! let session = inline("session", |event: u64, cx| Ok(event ^ cx.route_key())).by_route_key();
//! // One that awaits: a local task on the same shard.
//! let slow = spawned("slow", |ms: u64, cx| async move {
//!     cx.sleep(std::time::Duration::from_millis(ms)).await;
//!     Err::<(), _>(HandlerError::new("slept for nothing"))
//! });
//! // One that takes the messages of a connection one after the other; 100 wait at most.
//! let log = spawned("log", |line: String, _cx| async move { Ok(line.len()) })
//!     .ordered_per_peer(100);
//! // Called once for many messages; each has its own answer.
//! let batch = Batch {
//!     count_max: 100,
//!     bytes_max: 1 << 20,
//!     age_max: std::time::Duration::from_millis(1),
//! };
//! let store = batched("store", batch, |rows: &mut [Item<String, usize>], _cx| {
//!     for row in rows {
//!         let bytes = row.request().len();
//!         row.answer(Ok(bytes));
//!     }
//! });
//! // Long or blocking work: on a thread of a bounded pool, off the shards' CPUs.
//! let size = blocking("size", |path: String, _cx| Ok(std::fs::metadata(path)?.len()));
//! ```
//!
//! Names that begin with `_` are corelane's own: every [`Runtime`](crate::runtime) serves some.

mod awaiting;
mod batched;
mod blocking;
mod built_in;
mod changing;
mod context;
mod demotion;
mod dispatch;
mod failure;
mod inline;
mod ordered;
mod registry;
mod spawned;
mod timers;

pub use crate::error::HandlerError;
pub use awaiting::Board;
pub(crate) use awaiting::await_handler;
pub use batched::{
    Batch, BatchContext, Item, batched, batched_raw, batched_raw_with, batched_with,
};
pub use blocking::{BlockingCall, Lane, blocking, blocking_raw};
pub(crate) use built_in::{built_in, built_in_job};
pub use context::{Asker, BlockingContext, Context, ShardInfo, TaskContext};
pub use dispatch::{Arrival, Dispatch, Lent, Spawning};
pub use failure::Failure;
pub use inline::{
    inline, inline_in_place, inline_in_place_with, inline_raw, inline_raw_with, inline_with,
};
pub use ordered::{Begun, Lines, Sender};
pub use registry::{Handler, Registry};
pub use spawned::{spawned, spawned_raw};
pub use timers::{Sleep, Timers};
