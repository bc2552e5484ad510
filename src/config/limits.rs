//! Every limit, its default, and what it may be set to.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::source::Blame;
use crate::error::ConfigError;

/// `[limits]`, as written. Sizes are bytes, times are in the unit that ends the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LimitsConfig {
    /// Largest payload of one message. When hit: nack `TooLarge` after a decoded header, else the
    /// connection closes; when sending, an error with the payload back.
    pub message_bytes_max: u64,
    /// Frames in one multipart message; more close the connection.
    pub frames_max: u64,
    /// Metadata in one handshake; more closes the connection. Not enforced by `libzmq`, which has
    /// bounds of its own.
    pub handshake_bytes_max: u64,
    /// Time from accept to the end of the handshake; later closes the connection.
    pub handshake_ms: u64,
    /// Connections per shard that have not finished their handshake; at this many, accepting
    /// pauses. Not enforced by `libzmq`, which accepts by itself.
    pub unauthenticated_max: u64,
    /// Bytes held for each of those. The native engine holds no more than a greeting and
    /// `handshake_bytes_max`, which is at most this. Not enforced by `libzmq`.
    pub unauthenticated_bytes_max: u64,
    /// Time between two heartbeats on a connection. The libzmq engine has the kernel probe idle tcp
    /// connections instead, in whole seconds: libzmq's own heartbeats can abort the process.
    pub heartbeat_interval_ms: u64,
    /// Silence after which a peer is lost.
    pub heartbeat_timeout_ms: u64,
    /// Messages queued for one peer; at this many, `Full` with the message back to the caller.
    pub outgoing_messages_max: u64,
    /// Bytes queued for one peer; likewise.
    pub outgoing_bytes_max: u64,
    /// For so long a peer's queue may stay full before it is cut off as a slow consumer. Not
    /// enforced by `libzmq`.
    pub slow_consumer_ms: u64,
    /// Bytes that one shard buffers for all its peers; at this many, reading pauses, and then
    /// messages are nacked `Overloaded`. Not enforced by `libzmq`.
    pub buffered_bytes_max: u64,
    /// Messages in one ring between two shards; a full one holds back the connection that fills
    /// it. Eight bytes each, and two rings each way between each two shards.
    pub ring_capacity: u64,
    /// Calls from foreign threads that wait for one shard; at this many, `Full`.
    pub inbox_capacity: u64,
    /// Spawned handlers at once per shard; at this many, nack `Overloaded`.
    pub spawned_max: u64,
    /// Requests and confirms per shard that wait for an answer; at this many, `Full`.
    pub outstanding_max: u64,
    /// Deadline of a call that names none.
    pub deadline_ms: u64,
    /// First pause before a connection is made again; each further one doubles.
    pub reconnect_min_ms: u64,
    /// Longest such pause.
    pub reconnect_max_ms: u64,
    /// Time that a graceful stop may take; 0 stops at once, and what is left resolves as
    /// `Indeterminate` or `NotSent`.
    pub drain_ms: u64,
    /// Run time of an inline handler over which it is counted and named.
    pub inline_budget_us: u64,
    /// Messages that one turn of the reactor takes from one source before it looks at the others.
    pub turn_messages_max: u64,
    /// How long a message may wait for its handler while its queue stands; one that has waited
    /// longer is nacked `Overloaded`, built-in handlers' excepted. 0: as long as its deadline
    /// lasts. To be well above the longest run of an inline handler and a turn's length. Not
    /// enforced by `libzmq` but for what waits for another shard or the pool.
    pub shed_target_us: u64,
    /// A queue stands once its shard (or thread of the pool) has had no moment without work for
    /// this long, and most of what it came to had waited for longer than that.
    pub shed_after_ms: u64,
}

/// Checked limits: none is 0 where that would stop everything, and none contradicts another.
///
/// Fields are those of [`LimitsConfig`], which says what happens when each is hit.
/// [`Limits::default`] is what an empty configuration gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // documented at `LimitsConfig`, under the same names
pub struct Limits {
    pub message_bytes_max: usize,
    pub frames_max: usize,
    pub handshake_bytes_max: usize,
    pub handshake: Duration,
    pub unauthenticated_max: usize,
    pub unauthenticated_bytes_max: usize,
    pub heartbeat_interval: Duration,
    pub heartbeat_timeout: Duration,
    pub outgoing_messages_max: usize,
    pub outgoing_bytes_max: usize,
    pub slow_consumer: Duration,
    pub buffered_bytes_max: usize,
    pub ring_capacity: usize,
    pub inbox_capacity: usize,
    pub spawned_max: usize,
    pub outstanding_max: usize,
    pub deadline: Duration,
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    pub drain: Duration,
    pub inline_budget: Duration,
    pub turn_messages_max: usize,
    pub shed_target: Duration,
    pub shed_after: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            message_bytes_max: MIB,
            frames_max: 16,
            handshake_bytes_max: 4 * KIB,
            handshake_ms: 5_000,
            unauthenticated_max: 128,
            unauthenticated_bytes_max: 64 * KIB,
            heartbeat_interval_ms: 1_000,
            heartbeat_timeout_ms: 3_000,
            outgoing_messages_max: 1_000,
            outgoing_bytes_max: 4 * MIB,
            slow_consumer_ms: 5_000,
            buffered_bytes_max: 256 * MIB,
            ring_capacity: 1_024,
            inbox_capacity: 1_024,
            spawned_max: 10_000,
            outstanding_max: 65_536,
            deadline_ms: 30_000,
            reconnect_min_ms: 100,
            reconnect_max_ms: 5_000,
            drain_ms: 5_000,
            inline_budget_us: 100,
            // With 64 calls outstanding, a whole turn's worth of 64 keeps each end waiting for the
            // other: 32 brought 2.7 million requests a second where 64 brought 2.2 and 16 brought
            // 1.7 (tcp; ipc: 3.8, 2.4, 3.2).
            turn_messages_max: 32,
            // Off: how old a request may be and still be worth its work is for its service to say.
            shed_target_us: 0,
            // CoDel waits 100 ms, a round trip of the senders that it slows down. Here none slows
            // down, and who is admitted until then waits for as long.
            shed_after_ms: 20,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        LimitsConfig::default().derive()
    }
}

impl LimitsConfig {
    /// Checks each limit alone, then those that must fit together.
    pub(super) fn check(&self, blame: &Blame<'_>) -> Result<Limits, ConfigError> {
        let defaults = Self::default();
        for range in RANGES {
            range.check(self, &defaults, blame)?;
        }
        for (smaller, larger) in PAIRS {
            smaller.check_at_most(larger, self, blame)?;
        }
        Ok(self.derive())
    }

    fn derive(&self) -> Limits {
        // Every value has a ceiling in `RANGES` that a 64-bit `usize` holds; corelane is for Linux
        // on 64-bit machines, and a narrower `usize` would saturate.
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Limits {
            message_bytes_max: size(self.message_bytes_max),
            frames_max: size(self.frames_max),
            handshake_bytes_max: size(self.handshake_bytes_max),
            handshake: Duration::from_millis(self.handshake_ms),
            unauthenticated_max: size(self.unauthenticated_max),
            unauthenticated_bytes_max: size(self.unauthenticated_bytes_max),
            heartbeat_interval: Duration::from_millis(self.heartbeat_interval_ms),
            heartbeat_timeout: Duration::from_millis(self.heartbeat_timeout_ms),
            outgoing_messages_max: size(self.outgoing_messages_max),
            outgoing_bytes_max: size(self.outgoing_bytes_max),
            slow_consumer: Duration::from_millis(self.slow_consumer_ms),
            buffered_bytes_max: size(self.buffered_bytes_max),
            ring_capacity: size(self.ring_capacity),
            inbox_capacity: size(self.inbox_capacity),
            spawned_max: size(self.spawned_max),
            outstanding_max: size(self.outstanding_max),
            deadline: Duration::from_millis(self.deadline_ms),
            reconnect_min: Duration::from_millis(self.reconnect_min_ms),
            reconnect_max: Duration::from_millis(self.reconnect_max_ms),
            drain: Duration::from_millis(self.drain_ms),
            inline_budget: Duration::from_micros(self.inline_budget_us),
            turn_messages_max: size(self.turn_messages_max),
            shed_target: Duration::from_micros(self.shed_target_us),
            shed_after: Duration::from_millis(self.shed_after_ms),
        }
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HOUR_MS: u64 = 3_600_000;

/// A queued message is more than its payload: 40 bytes of header, and 9 at most before each frame.
const MESSAGE_OVERHEAD_BYTES: u64 = 64;

/// What one limit may be set to. The numbers are ceilings of the wire where it has them, and else
/// far beyond use: they catch a slip of the unit, not a taste.
struct Range {
    key: &'static str,
    of: fn(&LimitsConfig) -> u64,
    min: u64,
    max: u64,
}

macro_rules! range {
    ($field:ident: $min:expr, $max:expr) => {
        Range {
            key: concat!("limits.", stringify!($field)),
            of: |l| l.$field,
            min: $min,
            max: $max,
        }
    };
}

const RANGES: &[Range] = &[
    // The wire counts a plain payload in 32 bits.
    range!(message_bytes_max: 1, u32::MAX as u64),
    // Header and payload.
    range!(frames_max: 2, 65_536),
    // READY with a socket type and the longest identity that ZMTP allows, 255 bytes.
    range!(handshake_bytes_max: 512, MIB),
    range!(handshake_ms: 1, HOUR_MS),
    range!(unauthenticated_max: 1, MIB),
    range!(unauthenticated_bytes_max: 512, GIB),
    range!(heartbeat_interval_ms: 1, HOUR_MS),
    // ZMTP's PING carries a TTL of 16 bits, in tenths of a second.
    range!(heartbeat_timeout_ms: 1, u16::MAX as u64 * 100),
    range!(outgoing_messages_max: 1, 16 * MIB),
    range!(outgoing_bytes_max: 1, 1_024 * GIB),
    range!(slow_consumer_ms: 1, HOUR_MS),
    range!(buffered_bytes_max: 1, 1_024 * GIB),
    range!(ring_capacity: 1, MIB),
    range!(inbox_capacity: 1, 16 * MIB),
    range!(spawned_max: 1, 16 * MIB),
    range!(outstanding_max: 1, 16 * MIB),
    // The wire counts a deadline in 32 bits of microseconds.
    range!(deadline_ms: 1, u32::MAX as u64 / 1_000),
    range!(reconnect_min_ms: 1, HOUR_MS),
    range!(reconnect_max_ms: 1, HOUR_MS),
    range!(drain_ms: 0, HOUR_MS),
    range!(inline_budget_us: 1, 60_000_000),
    range!(turn_messages_max: 1, MIB),
    range!(shed_target_us: 0, 1_000 * HOUR_MS),
    range!(shed_after_ms: 1, HOUR_MS),
];

impl Range {
    fn check(
        &self,
        limits: &LimitsConfig,
        defaults: &LimitsConfig,
        blame: &Blame<'_>,
    ) -> Result<(), ConfigError> {
        blame.check_range(
            self.key,
            (self.of)(limits),
            self.min..=self.max,
            (self.of)(defaults),
        )
    }
}

/// One side of "must be at most": a limit, and what is added to it.
struct Side {
    key: &'static str,
    of: fn(&LimitsConfig) -> u64,
    plus: u64,
    plus_why: &'static str,
}

macro_rules! side {
    ($field:ident) => {
        side!($field + 0, "")
    };
    ($field:ident + $plus:expr, $why:literal) => {
        Side {
            key: concat!("limits.", stringify!($field)),
            of: |l| l.$field,
            plus: $plus,
            plus_why: $why,
        }
    };
}

/// The first of each pair must be at most the second.
const PAIRS: &[(Side, Side)] = &[
    (side!(heartbeat_interval_ms), side!(heartbeat_timeout_ms)),
    (side!(reconnect_min_ms), side!(reconnect_max_ms)),
    (
        side!(
            message_bytes_max + MESSAGE_OVERHEAD_BYTES,
            " + 64 bytes of header and framing"
        ),
        side!(outgoing_bytes_max),
    ),
    (side!(outgoing_bytes_max), side!(buffered_bytes_max)),
    (side!(handshake_bytes_max), side!(unauthenticated_bytes_max)),
];

impl Side {
    fn check_at_most(
        &self,
        larger: &Self,
        limits: &LimitsConfig,
        blame: &Blame<'_>,
    ) -> Result<(), ConfigError> {
        let (low, high) = ((self.of)(limits), (larger.of)(limits));
        if low.saturating_add(self.plus) <= high {
            return Ok(());
        }
        Err(ConfigError::Contradiction {
            at: blame.either(larger.key, self.key),
            why: format!(
                "{} = {low}{} must be at most {} = {high}",
                self.key, self.plus_why, larger.key
            ),
            remedy: "raise the latter or lower the former".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_range_that_holds_its_default() {
        let fields = toml::Table::try_from(LimitsConfig::default()).expect("a table");
        let checked: Vec<&str> = RANGES
            .iter()
            .map(|range| range.key.trim_start_matches("limits."))
            .collect();
        let mut sorted = checked.clone();
        sorted.sort_unstable();
        assert_eq!(
            sorted,
            fields.keys().map(String::as_str).collect::<Vec<_>>()
        );
        for range in RANGES {
            let default = (range.of)(&LimitsConfig::default());
            assert!((range.min..=range.max).contains(&default), "{}", range.key);
        }
    }
}
