//! The handlers of one shard, by key.

use std::{fmt, rc::Rc, sync::Arc};

use rustc_hash::FxHashMap;

use super::{
    Failure, ShardInfo,
    batched::Batched,
    blocking::{Blocking, Lane},
    inline::Inline,
    ordered::{Lines, Ordered},
    spawned::Spawned,
};
use crate::{
    codec::Decoder,
    error::RegistryError,
    wire::{Affinity, HandlerKey, Header, Reason, shard_of_key},
};

/// Names that begin so belong to corelane.
const RESERVED_PREFIX: char = '_';
/// Bytes of the longest name: what a dump's tag and a log line bear.
const NAME_BYTES_MAX: usize = 128;

/// A name, and how to make what runs for it on a shard. Made by [`inline`](super::inline()) and its
/// like.
#[derive(Clone)]
pub struct Handler {
    name: Arc<str>,
    home: Home,
    origin: Origin,
    kind: HandlerKind,
    running_max: usize,
    overruns_max: u64,
    /// Messages of one peer that wait at most, if its messages keep their order.
    ordered: Option<usize>,
    make: Arc<dyn Fn(&ShardInfo) -> Runner + Send + Sync>,
}

/// What a handler is, as far as that must be known before it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandlerKind {
    Blocking,
    Spawned,
    /// Runs in the reactor's turn.
    Other,
}

/// Where a handler's messages run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// On the shard that they arrive at.
    Local,
    Shard(usize),
    LastShard,
    RouteKey,
}

/// Whose a handler is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    User,
    /// Corelane's own.
    BuiltIn {
        /// Whether it runs while the process drains, when every other message is refused.
        while_draining: bool,
    },
}

/// One shard's instance of a handler.
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) home: Home,
    pub(super) origin: Origin,
    pub(super) runner: Runner,
    /// Messages that run as tasks, or wait or run on the pool.
    running: usize,
    running_most: usize,
    running_max: usize,
    /// Of an inline handler.
    pub(super) overruns: u64,
    pub(super) overruns_max: u64,
}

impl Entry {
    /// What speaks against one more message beside the reactor.
    pub(super) fn crowding(&self) -> Option<Failure> {
        let (name, most) = (&self.name, self.running_max);
        (self.running >= most).then(|| Failure {
            reason: Reason::Overloaded,
            text: format!("{name:?} runs at most {most} messages at once on a shard"),
        })
    }
}

/// What runs, and how.
pub(super) enum Runner {
    Inline(Box<dyn Inline>),
    Spawned(Box<dyn Spawned>),
    Ordered(Box<Ordered>),
    Batched(Box<dyn Batched>),
    /// The same on every shard.
    Blocking(Arc<dyn Blocking>),
}

impl Handler {
    pub(super) fn new(
        name: &str,
        make: impl Fn(&ShardInfo) -> Runner + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            home: Home::Local,
            origin: Origin::User,
            kind: HandlerKind::Other,
            running_max: usize::MAX,
            overruns_max: u64::MAX,
            ordered: None,
            make: Arc::new(make),
        }
    }

    pub(super) fn blocking(name: &str, handler: Arc<dyn Blocking>) -> Self {
        Self {
            kind: HandlerKind::Blocking,
            ..Self::new(name, move |_| Runner::Blocking(handler.clone()))
        }
    }

    pub(super) fn spawned(
        name: &str,
        make: impl Fn() -> Box<dyn Spawned> + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind: HandlerKind::Spawned,
            ..Self::new(name, move |_| Runner::Spawned(make()))
        }
    }

    pub(super) fn built_in(self, while_draining: bool) -> Self {
        let origin = Origin::BuiltIn { while_draining };
        Self { origin, ..self }
    }

    /// All its messages run on this shard, whichever they arrive at: state without a lock for the
    /// whole process. Without such a shard the runtime does not start.
    pub fn on_shard(self, shard: usize) -> Self {
        let home = Home::Shard(shard);
        Self { home, ..self }
    }

    /// As [`on_shard`](Self::on_shard), on the last one, however many there are.
    pub fn on_last_shard(self) -> Self {
        let home = Home::LastShard;
        Self { home, ..self }
    }

    /// Each of its messages runs on the shard that its route key belongs to
    /// ([`wire::shard_of_key`](crate::wire::shard_of_key)): state without a lock for each key. A
    /// message without a route key is nacked `Malformed`.
    pub fn by_route_key(self) -> Self {
        let home = Home::RouteKey;
        Self { home, ..self }
    }

    /// No more of its messages than this are under way at once on a shard; one more is nacked
    /// `Overloaded`, with its name and this limit. 0 counts as 1.
    ///
    /// For spawned and blocking handlers: a message is under way from when it is read until it is
    /// answered, so that of a blocking one those that wait for a thread count, too. Without it the
    /// limits of the config alone hold, for all handlers together. An inline handler runs one
    /// message at a time anyway.
    pub fn concurrency(self, at_once: usize) -> Self {
        let running_max = at_once.max(1);
        Self {
            running_max,
            ..self
        }
    }

    /// An inline handler that has outrun its budget (`limits.inline_budget_us`) so often on a shard
    /// is demoted there: from its next message on, each runs as a local task, as a spawned
    /// handler's does and within the same bounds. That is logged once and counted
    /// (`Counters::demoted`). 0 counts as 1; other kinds are never demoted.
    ///
    /// The function stays what it is: while it runs, its shard does nothing else. What a demotion
    /// buys is that what was read in the same turn is answered first, and that other tasks have
    /// their turns between two of its messages. It costs a copy of the payload and some
    /// allocations per message, and messages for other handlers may overtake those for this one.
    /// Work that is long by nature belongs to [`blocking`](super::blocking()).
    pub fn demote_after(self, overruns: u64) -> Self {
        let overruns_max = overruns.max(1);
        Self {
            overruns_max,
            ..self
        }
    }

    /// The messages of one peer run one after the other, in the order in which they arrived; those
    /// of different peers run at the same time. For spawned handlers only: with another kind the
    /// runtime does not start. At most `waiting_max` messages of a peer wait behind the one that
    /// runs; one more is nacked `Overloaded`.
    ///
    /// A peer is a connection: what it sends by two of them, or by one after the other, has no
    /// order. Nor have messages for different handlers. A message that waits counts as a spawned
    /// one, within `limits.spawned_max` and [`concurrency`](Self::concurrency); what waits on a
    /// shard takes no more than `limits.buffered_bytes_max`, or is nacked `Overloaded`.
    ///
    /// The next begins when the handler's future has ended or was dropped, at its deadline, say.
    /// One whose deadline passes while it waits is nacked `DeadlineExceeded` and does not run; one
    /// that is cancelled does not run either. A connection that is lost stops nothing, as with all
    /// spawned handlers: what has arrived by it still runs, in its order. A drain finishes what
    /// waits; if its time runs out, that is counted as lost. The payload is copied once more than
    /// without order, and decoded at its turn.
    pub fn ordered_per_peer(self, waiting_max: usize) -> Self {
        let ordered = Some(waiting_max);
        Self { ordered, ..self }
    }

    fn make_runner(&self, index: usize, shard: &ShardInfo, lines: &Rc<Lines>) -> Runner {
        match ((self.make)(shard), self.ordered) {
            (Runner::Spawned(handler), Some(waiting_max)) => {
                Runner::Ordered(Box::new(Ordered::new(handler, index, waiting_max, lines)))
            }
            (runner, _) => runner,
        }
    }

    /// Where its messages run in a process of so many shards.
    pub fn affinity(&self, shards: usize) -> Affinity {
        match self.home {
            Home::Local => Affinity::Local,
            Home::Shard(shard) => Affinity::Shard(shard),
            Home::LastShard => Affinity::Shard(shards - 1),
            Home::RouteKey => Affinity::Key,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it runs on the pool of blocking handlers, which there must be then.
    pub fn is_blocking(&self) -> bool {
        self.kind == HandlerKind::Blocking
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("name", &self.name)
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

/// The handlers that one shard runs, frozen at start. A handler's index is its place in the order
/// of registration, the same on every shard; the built-in ones come last.
pub struct Registry {
    by_key: FxHashMap<u64, usize>,
    pub(super) entries: Vec<Entry>,
    own: usize,
    shards: usize,
    pub(super) decoder: Decoder,
    /// What handlers write for nobody.
    pub(super) scratch: Vec<u8>,
    /// Who waits for their turn.
    lines: Rc<Lines>,
    /// The key that was looked up last, and its index: messages come in runs to one handler.
    last: Option<(HandlerKey, usize)>,
}

impl Registry {
    /// Refuses what so many shards could not serve: a name twice, two names with one key, a
    /// reserved, empty or overlong name, a shard that is not there.
    pub fn check(handlers: &[Handler], shards: usize) -> Result<(), RegistryError> {
        let mut by_key: FxHashMap<u64, &str> = FxHashMap::default();
        for Handler {
            name,
            home,
            kind,
            ordered,
            ..
        } in handlers
        {
            if ordered.is_some() && *kind != HandlerKind::Spawned {
                let name = name.to_string();
                return Err(RegistryError::NotSpawned { name });
            }
            if let Home::Shard(shard) = *home
                && shard >= shards
            {
                let name = name.to_string();
                return Err(RegistryError::NoSuchShard {
                    name,
                    shard,
                    shards,
                });
            }
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(RegistryError::Length {
                    name: name.to_string(),
                    bytes_max: NAME_BYTES_MAX,
                });
            }
            if name.starts_with(RESERVED_PREFIX) {
                return Err(RegistryError::Reserved {
                    name: name.to_string(),
                });
            }
            let key = HandlerKey::of(name);
            match by_key.insert(key.get(), name) {
                Some(other) if other == &**name => {
                    return Err(RegistryError::Twice {
                        name: name.to_string(),
                    });
                }
                Some(other) => {
                    let (name, other) = (name.to_string(), other.to_owned());
                    return Err(RegistryError::Collision {
                        name,
                        other,
                        key: key.to_string(),
                    });
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Makes every handler for this shard, on this shard.
    pub fn new(handlers: &[Handler], shard: &ShardInfo) -> Self {
        let keys = handlers
            .iter()
            .map(|handler| HandlerKey::of(&handler.name).get());
        let lines = Rc::new(Lines::default());
        Self {
            by_key: keys.zip(0..).collect(),
            entries: handlers
                .iter()
                .enumerate()
                .map(|(index, handler)| Entry {
                    name: handler.name.clone(),
                    home: match handler.home {
                        Home::LastShard => Home::Shard(shard.shards - 1),
                        home => home,
                    },
                    origin: handler.origin,
                    runner: handler.make_runner(index, shard, &lines),
                    running: 0,
                    running_most: 0,
                    running_max: handler.running_max,
                    overruns: 0,
                    overruns_max: handler.overruns_max,
                })
                .collect(),
            own: shard.shard,
            shards: shard.shards,
            decoder: Decoder::new(),
            scratch: Vec::new(),
            lines,
            last: None,
        }
    }

    /// Who waits for their turn.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// No more bytes of messages than this wait for their turn, unless one alone is larger.
    pub fn keep_at_most(&self, bytes_max: usize) {
        self.lines.set_bytes_max(bytes_max);
    }

    /// A message of this handler runs from now on beside the reactor, or waits for a thread.
    pub fn begin(&mut self, handler: usize) {
        let entry = &mut self.entries[handler];
        entry.running += 1;
        entry.running_most = entry.running_most.max(entry.running);
    }

    /// A handler's messages that run or wait beside the reactor, and the most that have at once.
    pub fn under_way(&self, handler: usize) -> (usize, usize) {
        let entry = &self.entries[handler];
        (entry.running, entry.running_most)
    }

    /// It is answered, or cannot be.
    pub fn end(&mut self, handler: usize) {
        self.entries[handler].running -= 1;
    }

    /// The names in the order of their indexes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.name)
    }

    /// Those of them that users have registered. They come first, so that their indexes are their
    /// places here, too.
    pub fn user_names(&self) -> impl Iterator<Item = &str> {
        let users = self.entries.iter().filter(|it| !it.origin.is_built_in());
        users.map(|entry| &*entry.name)
    }

    /// Whether a message runs though the process drains.
    #[cold]
    pub fn runs_while_draining(&mut self, header: &Header) -> bool {
        let origin = self
            .index_of(header.handler)
            .map(|it| self.entries[it].origin);
        let while_draining = true;
        origin == Some(Origin::BuiltIn { while_draining })
    }

    /// Where a blocking handler's messages wait.
    pub(super) fn lane_of(&self, index: usize) -> Lane {
        match self.entries[index].origin {
            Origin::User => Lane::Pool,
            Origin::BuiltIn { .. } => Lane::Operator,
        }
    }

    /// The other shard that a message is to run on. `None`: it runs here, or nowhere.
    #[inline]
    pub fn elsewhere(&mut self, header: &Header) -> Option<usize> {
        if self.shards == 1 {
            return None;
        }
        let index = self.index_of(header.handler)?;
        let home = match self.entries[index].home {
            Home::Local | Home::LastShard => return None,
            Home::Shard(shard) => shard,
            // It is refused where it is.
            Home::RouteKey if header.route_key == 0 => return None,
            Home::RouteKey => shard_of_key(header.route_key, self.shards),
        };
        (home != self.own).then_some(home)
    }

    /// The index of the handler that a message names, if there is one.
    #[inline]
    pub fn index_of(&mut self, key: HandlerKey) -> Option<usize> {
        match self.last {
            Some((last, index)) if last == key => Some(index),
            _ => {
                let index = self.by_key.get(&key.get()).copied()?;
                self.last = Some((key, index));
                Some(index)
            }
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests;
