//! What happens in a runtime, for a program that wants to be told: peers that come, drain and go.
//!
//! ```no_run
//! # use corelane::{Config, Runtime, events::Event};
//! # fn example(runtime: &Runtime) {
//! let mut events = runtime.events();
//! std::thread::spawn(move || {
//!     // Ends with the runtime. On any executor: `while let Some(event) = events.next().await`.
//!     while let Some(event) = events.recv() {
//!         match event {
//!             Event::Up(peer) => println!("{} is there", peer.instance),
//!             Event::Down { peer, reason } => println!("{} has gone: {reason}", peer.instance),
//!             Event::Missed(events) => println!("too slow: {events} are lost"),
//!             _ => {}
//!         }
//!     }
//! });
//! # }
//! ```
//!
//! Each [`Subscription`] has a queue of its own, of [`Subscription::CAPACITY`] events. Who does not
//! keep up loses the **oldest**, and is told how many ([`Event::Missed`]) before the next one: what
//! a full queue still holds is the latest. Nothing polls. A shard that tells of an event neither
//! blocks nor waits for a lock; without a subscriber it does nothing.

mod hub;
mod subscription;

use std::fmt;

use uuid::Uuid;

pub use self::{
    hub::Hub,
    subscription::{Next, NoEvent, Subscription},
};
use crate::error::Lost;

/// What has happened.
///
/// Events of one shard come in their order; those of several are as they were told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A peer is there: it was dialed and has welcomed this process, or has connected and said
    /// hello. Who never does that is no peer.
    Up(PeerInfo),
    /// It has said goodbye: it handles nothing new, and answers what it has. `Down` follows.
    Draining(PeerInfo),
    /// The connection has ended. One that was dialed is made again, until its handle is dropped;
    /// then `Up` comes with a later epoch. The libzmq engine does not learn that a peer has gone
    /// that has connected to it, until something is sent to it, or it is the longest silent one of
    /// very many.
    Down {
        /// As it was told to be up.
        peer: PeerInfo,
        /// Why.
        reason: Departure,
    },
    /// A handler of this name is served now, on every shard.
    HandlerRegistered {
        /// Its name.
        name: String,
    },
    /// The handler of this name is not served any more.
    HandlerRemoved {
        /// Its name.
        name: String,
    },
    /// So many events were lost here, before the next one: this subscription's queue was full.
    Missed(u64),
}

/// A connection to a peer that is introduced: its hello or welcome has been read.
///
/// A process may be known by several: it connects to several shards, each end has dialed the other,
/// or one is left for ipc. The connections to the further shards of a process that was dialed are
/// not told of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// As the peer names its running process.
    pub instance: Uuid,
    /// Where it was dialed; `None` if it has connected to this process.
    pub endpoint: Option<String>,
    /// The shard of this process that has the connection.
    pub shard: usize,
    /// Which of that shard's connections it is: a later one has a greater number.
    pub epoch: u64,
}

/// Why a connection to a peer has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Departure {
    /// It was lost.
    Lost(Lost),
    /// It was closed here, for messages that cannot be read.
    Unreadable,
    /// The last handle to the peer was dropped here.
    LetGo,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Departure::Lost(why) => why.fmt(f),
            Departure::Unreadable => f.write_str("its messages cannot be read"),
            Departure::LetGo => f.write_str("nobody speaks of the peer any more"),
        }
    }
}
