//! The handlers of one shard, by key.

mod check;
#[cfg(test)]
mod tests;

use std::{fmt, rc::Rc, sync::Arc};

use rustc_hash::FxHashMap;

pub(super) use self::check::could_be_served;
use super::{
    Failure, ShardInfo,
    awaiting::{AwaitHandler, Board},
    batched::Batched,
    blocking::{Blocking, Lane},
    changing::Quietly,
    inline::Inline,
    ordered::{Lines, Ordered},
    spawned::Spawned,
};
use crate::{
    codec::Decoder,
    wire::{Affinity, HandlerEntry, HandlerKey, Header, Reason, shard_of_key},
};

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
    /// Made by the registry, whose board it reads.
    Awaiting,
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
    pub(super) running: usize,
    pub(super) running_most: usize,
    running_max: usize,
    /// Of an inline handler.
    pub(super) overruns: u64,
    pub(super) overruns_max: u64,
    /// Longest inline run that was logged.
    logged_ns: u64,
}

impl Entry {
    pub(super) fn new(handler: &Handler, runner: Runner, shard: &ShardInfo) -> Self {
        Self {
            name: handler.name.clone(),
            home: match handler.home {
                Home::LastShard => Home::Shard(shard.shards - 1),
                home => home,
            },
            origin: handler.origin,
            runner,
            running: 0,
            running_most: 0,
            running_max: handler.running_max,
            overruns: 0,
            overruns_max: handler.overruns_max,
            logged_ns: 0,
        }
    }

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
    /// It was removed.
    Gone,
}

impl Handler {
    pub(super) fn new(
        name: &str,
        make: impl Fn(&ShardInfo) -> Runner + Send + Sync + 'static,
    ) -> Self {
        let make = Quietly::new(make);
        Self {
            name: name.into(),
            home: Home::Local,
            origin: Origin::User,
            kind: HandlerKind::Other,
            running_max: usize::MAX,
            overruns_max: u64::MAX,
            ordered: None,
            make: Arc::new(move |shard| make.get()(shard)),
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

    pub(super) fn awaiting(name: &str) -> Self {
        Self {
            kind: HandlerKind::Awaiting,
            ..Self::new(name, |_| Runner::Gone)
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

    pub(super) fn make_runner(
        &self,
        index: usize,
        shard: &ShardInfo,
        (lines, board): (&Rc<Lines>, &Rc<Board>),
    ) -> Runner {
        if self.kind == HandlerKind::Awaiting {
            return Runner::Spawned(Box::new(AwaitHandler(board.clone())));
        }
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

/// The handlers that one shard runs. A handler's index is its place in the order of registration,
/// the same on every shard. That of a built-in one is beyond them all, and no recorder knows it.
pub struct Registry {
    pub(super) by_key: FxHashMap<u64, usize>,
    /// The built-in ones, then those of users: to them others may be added.
    pub(super) entries: Vec<Entry>,
    /// How many are built in.
    built_in: usize,
    /// Made, and not served yet, with its index.
    pub(super) prepared: Option<(usize, Entry)>,
    own: usize,
    shards: usize,
    pub(super) decoder: Decoder,
    /// What handlers write for nobody.
    pub(super) scratch: Vec<u8>,
    /// Who waits for their turn.
    pub(super) lines: Rc<Lines>,
    /// Who waits for a handler.
    pub(super) board: Rc<Board>,
    /// The key that was looked up last, and its index: messages come in runs to one handler.
    pub(super) last: Option<(HandlerKey, usize)>,
}

impl Registry {
    /// Makes every handler for this shard, on this shard.
    pub fn new(handlers: &[Handler], shard: &ShardInfo) -> Self {
        let lines = Rc::new(Lines::default());
        let (built_in, users): (Vec<&Handler>, Vec<&Handler>) =
            handlers.iter().partition(|it| it.origin.is_built_in());
        let count = built_in.len();
        let all = || built_in.iter().chain(&users);
        let says = |of: &[&Handler]| {
            let entry = |it: &&Handler| HandlerEntry::new(&it.name, it.affinity(shard.shards));
            of.iter().map(entry).collect()
        };
        let board = Rc::new(Board::new(says(&built_in), says(&users)));
        let indexes = (0..).map(|position: usize| position.wrapping_sub(count));
        let keys = all().map(|it| HandlerKey::of(&it.name).get());
        let entry = |(index, it): (usize, &&Handler)| {
            let runner = it.make_runner(index, shard, (&lines, &board));
            Entry::new(it, runner, shard)
        };
        Self {
            by_key: keys.zip(indexes.clone()).collect(),
            entries: indexes.zip(all()).map(entry).collect(),
            built_in: count,
            prepared: None,
            own: shard.shard,
            shards: shard.shards,
            decoder: Decoder::new(),
            scratch: Vec::new(),
            lines: lines.clone(),
            board: board.clone(),
            last: None,
        }
    }

    #[inline]
    pub(super) fn position(&self, index: usize) -> usize {
        index.wrapping_add(self.built_in)
    }

    #[inline]
    pub(super) fn entry(&self, index: usize) -> &Entry {
        &self.entries[self.position(index)]
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, index: usize) -> &mut Entry {
        let position = self.position(index);
        &mut self.entries[position]
    }

    /// Who waits for their turn.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// What is said to be served, and who waits for more.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// No more bytes of messages than this wait for their turn, unless one alone is larger.
    pub fn keep_at_most(&self, bytes_max: usize) {
        self.lines.set_bytes_max(bytes_max);
    }

    /// A message of this handler runs from now on beside the reactor, or waits for a thread.
    pub fn begin(&mut self, handler: usize) {
        let entry = self.entry_mut(handler);
        entry.running += 1;
        entry.running_most = entry.running_most.max(entry.running);
    }

    /// A handler's messages that run or wait beside the reactor, and the most that have at once.
    pub fn under_way(&self, handler: usize) -> (usize, usize) {
        let entry = self.entry(handler);
        (entry.running, entry.running_most)
    }

    /// It is answered, or cannot be.
    pub fn end(&mut self, handler: usize) {
        self.entry_mut(handler).running -= 1;
    }

    /// The names of users' handlers, by index.
    pub fn user_names(&self) -> impl Iterator<Item = &str> {
        self.entries[self.built_in..].iter().map(|it| &*it.name)
    }

    /// Its name.
    pub fn name_of(&self, handler: usize) -> &str {
        &self.entry(handler).name
    }

    /// An inline handler has outrun its budget. True if it has doubled its longest run that was
    /// logged: then that is to be, so that a slow one does not flood the log.
    #[cold]
    pub fn is_news(&mut self, handler: usize, ran_ns: u64) -> bool {
        let logged_ns = &mut self.entry_mut(handler).logged_ns;
        let is_news = ran_ns >= logged_ns.saturating_mul(2);
        if is_news {
            *logged_ns = ran_ns;
        }
        is_news
    }

    /// Whether a message is for one of corelane's own handlers.
    pub fn is_built_in(&mut self, header: &Header) -> bool {
        let index = self.index_of(header.handler);
        index.is_some_and(|it| self.entry(it).origin.is_built_in())
    }

    /// Whether a message runs though the process drains.
    #[cold]
    pub fn runs_while_draining(&mut self, header: &Header) -> bool {
        let origin = self
            .index_of(header.handler)
            .map(|it| self.entry(it).origin);
        let while_draining = true;
        origin == Some(Origin::BuiltIn { while_draining })
    }

    /// Where a blocking handler's messages wait.
    pub(super) fn lane_of(&self, index: usize) -> Lane {
        match self.entry(index).origin {
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
        let home = match self.entry(index).home {
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
        let names = self.entries.iter().map(|it| &it.name);
        f.debug_set().entries(names).finish()
    }
}
