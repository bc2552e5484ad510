//! Whom a shard knows, for operators.

use std::sync::Arc;

use quanta::Instant;
use serde::Serialize;
use uuid::Uuid;

use super::Core;
use crate::{
    client::{Row, Said, Standing},
    events::PeerInfo,
    peers::AccountSnapshot,
};

/// Who has said hello on a connection. Not all that it said: a peer decides how much that is.
#[derive(Clone, Debug)]
pub(super) struct Introduced {
    pub(super) instance: Uuid,
    pub(super) since: Instant,
    /// Which of the shard's connections it is.
    pub(super) epoch: u64,
    /// It has said goodbye.
    pub(super) is_draining: bool,
    /// It wants to know when the list of handlers changes.
    pub(super) takes_updates: bool,
    pub(super) said: Arc<Said>,
}

impl Introduced {
    /// As a shard with this number enters it into the directory.
    pub(super) fn row(&self, shard: usize) -> Row {
        Row {
            info: self.info(shard),
            said: self.said.clone(),
        }
    }

    /// As a shard with this number tells of it.
    pub(super) fn info(&self, shard: usize) -> PeerInfo {
        PeerInfo {
            instance: self.instance,
            endpoint: None,
            shard,
            epoch: self.epoch,
        }
    }
}

/// The peers of one shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardPeers {
    /// Its number.
    pub shard: usize,
    /// Accepted connections that have said hello, and no goodbye: how many, listed or not.
    pub accepted_total: usize,
    /// Some of them, the oldest first.
    pub accepted: Vec<AcceptedPeer>,
    /// Connections that this shard was asked to make: how many, listed or not.
    pub dialed_total: usize,
    /// Some of them, by endpoint.
    pub dialed: Vec<DialedPeer>,
}

/// A process that has connected and said hello. The libzmq engine does not learn that one has gone,
/// and lists it until it forgets the connection. One that talks to several shards is known to each
/// of them.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AcceptedPeer {
    /// As its hello has it.
    pub instance: Uuid,
    /// Since its hello, in seconds.
    pub connected_s: f64,
}

/// A process that this one connects to.
#[derive(Clone, Debug, Serialize)]
pub struct DialedPeer {
    /// Where it listens.
    pub endpoint: String,
    /// `up`, `down` (no connection, or not welcomed yet), `draining` or `unconnectable`.
    pub state: &'static str,
    /// As its welcome had it; none before that.
    pub instance: Option<Uuid>,
    /// By which way it is reached instead, if it runs on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Whether it is a further shard of a process that is listed by its main connection, with which
    /// it shares one account.
    pub is_link: bool,
    /// How its messages ended; none at a link.
    pub account: Option<AccountSnapshot>,
    /// Messages of other threads that wait to leave; none at a link.
    pub waiting: Option<usize>,
}

impl Core {
    /// Bounded by `listed_max`, for nothing else runs meanwhile.
    pub(super) fn list_peers(&self, now: Instant, listed_max: usize) -> ShardPeers {
        let accepted = || self.introduced.values().filter(|it| !it.is_draining);
        let accepted_total = accepted().count();
        let accepted = accepted().take(listed_max);
        let mut accepted: Vec<_> = accepted
            .map(|it| AcceptedPeer {
                instance: it.instance,
                connected_s: now.saturating_duration_since(it.since).as_millis() as f64 / 1e3,
            })
            .collect();
        accepted.sort_by(|a, b| b.connected_s.total_cmp(&a.connected_s));
        let caller = self.side.caller.borrow();
        let dialed = caller.acquaintances().take(listed_max);
        let mut dialed: Vec<_> = dialed
            .map(|it| DialedPeer {
                endpoint: it.endpoint.to_string(),
                state: match it.standing {
                    Standing::Up => "up",
                    Standing::Down => "down",
                    Standing::Draining => "draining",
                    Standing::Unconnectable => "unconnectable",
                    // Of peers that are not dialed.
                    Standing::Away => "away",
                },
                instance: self.peers.instance_of(it.peer),
                via: caller.moved_to(it.peer).map(ToString::to_string),
                is_link: it.is_link,
                account: (!it.is_link).then(|| it.shared.account.read()),
                waiting: (!it.is_link).then(|| it.shared.credit.waiting()),
            })
            .collect();
        dialed.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        ShardPeers {
            shard: self.info.shard,
            accepted_total,
            accepted,
            dialed_total: caller.acquaintances().count(),
            dialed,
        }
    }
}
