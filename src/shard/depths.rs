//! How much a shard holds.

use super::Shard;
use crate::engine::Engine;

/// What a shard holds at one moment, each bounded by a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depths {
    /// Calls whose answers are outstanding.
    pub outstanding: usize,
    /// Messages to peers that have not left: in the connections' outboxes, staged, waiting.
    pub queued: usize,
    /// The most of these that go to one peer.
    pub queued_most: usize,
    /// Messages that wait for room in the ring to another shard.
    pub held: usize,
    /// Messages that have gone to other shards, and cancels, and have not come back.
    pub away: usize,
    /// Bytes of the payloads of both.
    pub crossing_bytes: usize,
    /// Spawned handlers that are not answered.
    pub spawned: usize,
    /// Messages for the pool that are not answered.
    pub blocking: usize,
}

impl<E: Engine> Shard<E> {
    /// What it holds now. Looks at every peer and every other shard: for tests and for operators,
    /// not for each turn. Does not allocate.
    pub fn depths(&self) -> Depths {
        let core = &self.core;
        let caller = core.side.caller.borrow();
        let (queued, queued_most) = caller.queued();
        let (held, away, crossing_bytes) = core.crossing.depths();
        Depths {
            outstanding: caller.outstanding(),
            queued,
            queued_most,
            held,
            away,
            crossing_bytes,
            spawned: core.tasks.live_handlers(),
            blocking: core.jobs.under_way_on_pool(),
        }
    }
}
