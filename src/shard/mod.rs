//! A shard: the software unit that one pinned CPU runs, and the only place where an engine meets a
//! handler.
//!
//! Its reactor is [`Shard::turn`], a plain function of the time: it reads like a table of contents
//! of what a shard does. In production [`run`] calls it from one glommio task; a test calls it with
//! a virtual clock.

mod answering;
mod batches;
mod blocking;
mod callers;
mod calling;
mod changing;
mod command;
mod commands;
mod crossing;
mod depths;
mod listing;
mod meeting;
mod nearby;
mod news;
mod ordering;
mod parcel;
mod park;
mod shedding;
mod tasks;
mod turn;
mod underway;

use std::{collections::VecDeque, rc::Rc, sync::Arc, time::Duration};

use quanta::{Clock, Instant};
use rustc_hash::FxHashMap;

use self::{
    batches::Batches, callers::Callers, crossing::Crossing, listing::Introduced, meeting::Expected,
    nearby::Nearby, news::News, shedding::Shedder, tasks::Tasks, underway::Underway,
};
pub use self::{
    blocking::{BlockingEnd, BlockingJob, BlockingPort, BlockingPorts, BlockingWorker},
    changing::{Announcement, Change, ChangeRefused, Changed},
    command::{Command, Drained, Guest, LocalFuture},
    depths::Depths,
    listing::{AcceptedPeer, DialedPeer, ShardPeers},
    parcel::Parcel,
    park::{MEMLOCK_BYTES_MIN, are_possible, check_io_uring, descriptors_needed, run, spawner},
    shedding::Shedding,
    tasks::Spawner,
    turn::Turn,
};
use crate::{
    client::{CallerLimits, CallingSide, Client, Connect, LocalClient, Submission},
    engine::{ConnectionId, Engine, Pauses},
    handler::{Registry, ShardInfo, TaskContext, Timers},
    metrics::Recorder,
    peers::{PeerId, PeerTable},
    route::{Doorbell, Inbox, Mesh},
    wire::{Hello, Outbox},
};

/// The limits that a shard keeps; derived from the checked configuration.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions {
    /// Messages that one turn reads at most.
    pub turn_messages_max: usize,
    /// Bytes of the largest payload.
    pub message_bytes_max: usize,
    /// Frames of a multipart message; whoever sends one with more is cut off.
    pub frames_max: usize,
    /// How long what was sent to a peer may keep its connection after its last handle is gone.
    pub close_within: Duration,
    /// Spawned handlers that run at once.
    pub spawned_max: usize,
    /// Calls whose answers are outstanding.
    pub outstanding_max: usize,
    /// Messages that may be on their way to one peer, and their bytes.
    pub outgoing_messages_max: usize,
    /// See `outgoing_messages_max`.
    pub outgoing_bytes_max: usize,
    /// Bytes of messages that are on their way to other shards and back.
    pub buffered_bytes_max: usize,
    /// Connections that this shard's own tasks have asked for, and submissions taken when it stops.
    pub inbox_capacity: usize,
    /// Before a process is dialed again that was lost soon after it was reached by ipc.
    pub reconnect: Pauses,
    /// How long an inline handler may run before it is counted and named.
    pub inline_budget: Duration,
    /// Whether it keeps histograms of its handlers and calls, or counts only.
    pub has_histograms: bool,
    /// Whether messages that have waited too long are refused, and which.
    pub shedding: Option<Shedding>,
}

/// What a shard is made from, besides its engine.
pub struct Parts {
    /// Where it runs.
    pub info: ShardInfo,
    /// Its limits.
    pub options: ShardOptions,
    /// Real, or a test's.
    pub clock: Clock,
    /// Its handlers, made on its thread.
    pub registry: Registry,
    /// The connections that other threads ask for.
    pub connects: Inbox<Connect>,
    /// What other threads submit.
    pub submissions: Inbox<Submission>,
    /// What the runtime commands.
    pub commands: Inbox<Command>,
    /// What the writers of both ring.
    pub doorbell: Arc<Doorbell>,
    /// Its ways to the other shards.
    pub mesh: Mesh<Parcel>,
    /// For its handlers, to reach other shards' peers.
    pub client: Client,
    /// How its tasks are spawned.
    pub spawner: Spawner,
    /// Where its blocking handlers run.
    pub jobs: BlockingPorts,
}

/// One pinned core's worth of runtime. `!Send`.
pub struct Shard<E> {
    engine: E,
    core: Core,
}

/// All of a shard but its engine, so that an arriving message can borrow both.
struct Core {
    info: Rc<ShardInfo>,
    options: ShardOptions,
    clock: Clock,
    registry: Registry,
    recorder: Recorder,
    /// `options.inline_budget`.
    inline_budget_ns: u64,
    /// The time, as far as this poll has read the clock: when its first message was read, then when
    /// its last handler returned.
    read_at: Option<Instant>,
    shedder: Shedder,
    /// Replies written in this turn: whose, and when its message was read.
    replied: Vec<(usize, Instant)>,
    submissions: Inbox<Submission>,
    /// The most submissions that were found waiting.
    inbox_most: usize,
    commands: Inbox<Command>,
    doorbell: Arc<Doorbell>,
    /// How often the doorbell had been rung when the inboxes were last emptied.
    rings_heard: u64,
    /// What goes to peers, shared with this shard's tasks.
    side: Rc<CallingSide>,
    local_client: LocalClient,
    timers: Rc<Timers>,
    tasks: Tasks,
    underway: Underway,
    batches: Batches,
    /// The answer of a batch's message, on its way to the place that was kept for it.
    kept_answer: Outbox,
    crossing: Crossing,
    jobs: BlockingPorts,
    peers: PeerTable<ConnectionId>,
    /// Peers whose last handle is gone, with messages still to be sent, and until when.
    closing: Vec<(PeerId, Instant)>,
    /// Connections that have come up, each once, to be greeted.
    came_up: Vec<ConnectionId>,
    /// Dialed connections that are to be welcomed, and until when.
    expected: Vec<Expected>,
    /// Accepted connections that have said hello, and whose. Not all that it said: a peer decides
    /// how much that is.
    introduced: FxHashMap<ConnectionId, Introduced>,
    callers: Callers,
    nearby: Nearby,
    /// This process's host, by its hello.
    host: String,
    /// What the program is to be told of.
    news: News,
    /// Unreadable headers in a row, by connection.
    strikes: FxHashMap<ConnectionId, u32>,
    /// Connections to be closed at the end of the poll, for their strikes.
    condemned: Vec<ConnectionId>,
    /// This process's hello, encoded.
    hello: Vec<u8>,
    /// Connections whose peers are to be told of the latest one.
    untold: Vec<ConnectionId>,
    phase: Phase,
}

enum Phase {
    Running,
    /// Nothing new is handled; over when all is answered, or then.
    Draining(Draining),
    Over,
}

struct Draining {
    /// What is not answered by then is given up.
    until: Instant,
    /// Until then, messages that were under way are still read and nacked.
    linger_until: Instant,
    /// Since all was last flushed.
    has_answered: bool,
    done: VecDeque<crossbeam_channel::Sender<Drained>>,
}

impl<E: Engine> Shard<E> {
    /// A shard that says this of itself. Its engine listens already.
    pub fn new(engine: E, hello: &Hello, parts: Parts) -> Self {
        let Parts {
            info,
            options,
            clock,
            registry,
            doorbell,
            mesh,
            client,
            spawner,
            jobs,
            ..
        } = parts;
        let Parts {
            connects,
            submissions,
            commands,
            ..
        } = parts;
        registry.keep_at_most(options.buffered_bytes_max);
        // Built-in handlers have no histograms: what an operator asks is not what he asks about.
        let names: Arc<[String]> = registry.user_names().map(String::from).collect();
        let limits = CallerLimits {
            outstanding_max: options.outstanding_max,
            messages_max: options.outgoing_messages_max,
            bytes_max: options.outgoing_bytes_max,
        };
        let news = News::new(info.shard, &client);
        let side = Rc::new(CallingSide::new(limits, options.inbox_capacity, connects));
        let local_client = LocalClient::new(info.shard, side.clone(), client);
        let batches = Batches::new(names.len());
        let core = Core {
            info: Rc::new(info),
            options,
            timers: Rc::new(Timers::new(clock.clone())),
            clock,
            registry,
            inline_budget_ns: turn::nanos(options.inline_budget),
            recorder: match options.has_histograms {
                true => Recorder::new(names),
                false => Recorder::counting(names),
            },
            read_at: None,
            shedder: Shedder::new(options.shedding),
            replied: Vec::new(),
            submissions,
            inbox_most: 0,
            commands,
            tasks: Tasks::new(spawner, options.spawned_max, &doorbell),
            doorbell,
            // None yet: the first turn looks.
            rings_heard: u64::MAX,
            side,
            local_client,
            underway: Underway::default(),
            batches,
            kept_answer: Outbox::new(1, usize::MAX),
            crossing: Crossing::new(mesh, options.buffered_bytes_max),
            jobs,
            peers: PeerTable::new(),
            closing: Vec::new(),
            came_up: Vec::new(),
            expected: Vec::new(),
            introduced: FxHashMap::default(),
            callers: Callers::default(),
            nearby: Nearby::new(hello),
            host: hello.host.clone(),
            news,
            strikes: FxHashMap::default(),
            condemned: Vec::new(),
            hello: hello.encode(),
            untold: Vec::new(),
            phase: Phase::Running,
        };
        Self { engine, core }
    }

    /// Sends from this shard, for code that lives on it.
    pub fn client(&self) -> &LocalClient {
        &self.core.local_client
    }

    /// What a task on this shard has to live on.
    pub fn task_context(&self) -> TaskContext {
        self.core.task_context()
    }
}

impl Core {
    fn task_context(&self) -> TaskContext {
        TaskContext {
            shard: self.info.clone(),
            client: self.local_client.clone(),
            timers: self.timers.clone(),
            deadline: None,
            route_key: 0,
            wants_reply: false,
            origin: None,
        }
    }
}
