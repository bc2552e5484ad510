//! Sending messages: from any thread with a [`Client`], from a shard with its [`LocalClient`].
//!
//! A builder names the handler, then the payload, the peer and the delivery mode, and its type
//! knows which of them it has:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use corelane::client::Client;
//! # #[derive(serde::Serialize)] struct Sum { a: i64, b: i64 }
//! # #[derive(serde::Deserialize)] struct Total { total: i64 }
//! # fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let peer = client.connect("tcp://127.0.0.1:7400")?;
//! let within = Duration::from_millis(5);
//! let sum = Sum { a: 1, b: 2 };
//! // A request: at most one execution, at most one reply. `.await` instead of `.wait()` works on
//! // any executor.
//! let request = client.message("sum").json(&sum)?.to(&peer).request();
//! let total: Total = request.within(within).wait()?;
//! // Confirmed: `Ok` once the handler has returned.
//! client.message("count").to(&peer).confirm().within(within).wait()?;
//! // One-way: `Ok` once it stands in a bounded queue, and nothing more.
//! client.message("count").to(&peer).one_way()?;
//! # Ok(()) }
//! ```
//!
//! Every call resolves exactly once, by its deadline: with the reply, a nack, or an error that says
//! whether the message can have been handled.

mod answers;
mod call;
mod caller;
mod calls;
mod directory;
mod local;
mod message;
mod order;
mod queue;
mod shards;
mod submit;

pub use call::{Acked, Call, Expect, RawReply, RemoteAnswer, TypedReply};
pub use caller::{Acquaintance, Caller, CallerLimits, Ends};
pub use directory::{Directory, KnownPeer, Origin, Row, RowKey, Said};
pub use local::{Answer, CallingSide, LocalCall, LocalClient};
pub use message::{Addressed, Confirm, Encoded, Message, Outgoing, Raw, Request};
pub use order::Order;
pub use queue::Standing;
pub use submit::{
    Client, ClientOptions, Connect, ConnectError, Peer, ShardPort, Submission, Submit, Submitted,
    Target,
};
