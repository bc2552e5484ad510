//! The ways from a caller to the shard that owns the peer's connection.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use quanta::{Clock, Instant};

use super::{Message, call::Outcome};
use crate::{
    config::Endpoint,
    error::{NotSent, SendError},
    peers::{Account, AccountSnapshot, Credit, PeerId, PeerShared},
    route::{Port, Refused},
    wire::{Codec, HandlerKey, Kind},
};

/// What a caller asks of a shard.
#[derive(Debug)]
pub enum Submission {
    /// Connect, and stay connected.
    Connect(Connect),
    /// Nobody speaks of the peer any more.
    Close(PeerId),
    /// Send a message.
    Message(Submitted),
}

/// A connection to be made.
#[derive(Debug)]
pub struct Connect {
    /// By which the caller speaks of the peer from now on.
    pub peer: PeerId,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its credit and account.
    pub shared: Arc<PeerShared>,
}

/// How other threads reach one shard. Connections have a queue of their own: a message may overtake
/// the other messages, from another queue, but never the making of its own connection.
#[derive(Clone, Debug)]
pub struct ShardPort {
    /// Connections to be made.
    pub connects: Port<Connect>,
    /// All else.
    pub submissions: Port<Submission>,
}

/// A message on its way to the shard that sends it. Its credit is taken.
#[derive(Debug)]
pub struct Submitted {
    pub(super) peer: PeerId,
    pub(super) kind: Kind,
    pub(super) codec: Codec,
    pub(super) handler: HandlerKey,
    pub(super) route_key: u64,
    pub(super) payload: Bytes,
    pub(super) submitted_at: Instant,
    pub(super) deadline: Option<Instant>,
    /// Who waits for the answer; nobody for a one-way message.
    pub(super) completion: Option<oneshot::Sender<Outcome>>,
}

/// The limits that a client keeps; derived from the checked configuration.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Bytes of the largest payload.
    pub message_bytes_max: usize,
    /// Messages that may wait for one peer.
    pub outgoing_messages_max: usize,
    /// Bytes that may wait for one peer.
    pub outgoing_bytes_max: usize,
    /// For calls that name none.
    pub deadline: Duration,
}

/// A handle to a process that this one connects to. Cheap to clone; the connection is closed with
/// the last clone and the last call that is under way.
#[derive(Clone)]
pub struct Peer(Arc<PeerHandle>);

struct PeerHandle {
    id: PeerId,
    shard: usize,
    endpoint: Endpoint,
    port: Port<Submission>,
    shared: Arc<PeerShared>,
}

impl Peer {
    /// Where the peer listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// The shard that owns the connection.
    pub fn shard(&self) -> usize {
        self.0.shard
    }

    /// How the messages to this peer ended so far.
    pub fn account(&self) -> AccountSnapshot {
        self.0.shared.account.read()
    }

    pub(super) fn id(&self) -> PeerId {
        self.0.id
    }

    pub(super) fn credit(&self) -> &Credit {
        &self.0.shared.credit
    }
}

impl Drop for PeerHandle {
    fn drop(&mut self) {
        // Without room in the inbox the connection stays until the runtime stops: a drop must not
        // block.
        let _ = self.port.try_send(Submission::Close(self.id));
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} at {})", self.0.id, self.0.endpoint)
    }
}

/// What the builder needs of a client.
pub trait Submit {
    /// Hands a message to the shard that owns the peer's connection, or gives it back. Never
    /// blocks.
    fn submit(&self, peer: &Peer, message: Submitted) -> Result<(), (NotSent, Submitted)>;
    /// The time of the submission.
    fn now(&self) -> Instant;
    /// The limits to keep.
    fn options(&self) -> &ClientOptions;
}

/// Sends from any thread and any executor. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<ClientState>);

struct ClientState {
    ports: Vec<ShardPort>,
    next_shard: AtomicUsize,
    clock: Clock,
    options: ClientOptions,
}

impl Client {
    /// A client of the shards behind these ports.
    pub fn new(ports: Vec<ShardPort>, clock: Clock, options: ClientOptions) -> Self {
        Self(Arc::new(ClientState {
            ports,
            next_shard: AtomicUsize::new(0),
            clock,
            options,
        }))
    }

    /// Begins to connect to a process, from the shards in turn, and returns at once: messages wait
    /// for the connection until their deadline. The error says what is wrong with the endpoint,
    /// or that the runtime cannot take it now.
    pub fn connect(&self, endpoint: &str) -> Result<Peer, ConnectError> {
        let shard = self.0.next_shard.fetch_add(1, Relaxed) % self.0.ports.len();
        self.connect_from(shard, endpoint)
    }

    /// As [`connect`](Self::connect), from this shard.
    ///
    /// # Panics
    ///
    /// If there is no such shard.
    pub fn connect_from(&self, shard: usize, endpoint: &str) -> Result<Peer, ConnectError> {
        self.connect_by(shard, endpoint, |connect| {
            self.0.ports[shard]
                .connects
                .try_send(connect)
                .map_err(|refused| match refused {
                    Refused::Full(_) => NotSent::Full,
                    Refused::Closed(_) => NotSent::Closed,
                })
        })
    }

    /// Begins a message to the handler of this name.
    pub fn message(&self, handler: &str) -> Message<'_, Self> {
        Message::new(self, handler)
    }

    fn connect_by(
        &self,
        shard: usize,
        endpoint: &str,
        submit: impl FnOnce(Connect) -> Result<(), NotSent>,
    ) -> Result<Peer, ConnectError> {
        let endpoint: Endpoint = endpoint.parse()?;
        let options = &self.0.options;
        let shared = Arc::new(PeerShared {
            credit: Credit::new(options.outgoing_messages_max, options.outgoing_bytes_max),
            account: Account::default(),
        });
        let peer = PeerId::unique();
        submit(Connect {
            peer,
            endpoint: endpoint.clone(),
            shared: shared.clone(),
        })
        .map_err(ConnectError::NotAccepted)?;
        let port = self.0.ports[shard].submissions.clone();
        Ok(Peer(Arc::new(PeerHandle {
            id: peer,
            shard,
            endpoint,
            port,
            shared,
        })))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("shards", &self.0.ports.len())
            .finish_non_exhaustive()
    }
}

impl Submit for Client {
    fn submit(&self, peer: &Peer, message: Submitted) -> Result<(), (NotSent, Submitted)> {
        take_credit(peer, message, |submission| peer.0.port.try_send(submission))
    }

    fn now(&self) -> Instant {
        self.0.clock.now()
    }

    fn options(&self) -> &ClientOptions {
        &self.0.options
    }
}

/// Sends from a shard: over connections of that shard without an atomic queue, over others' as a
/// [`Client`] does.
#[derive(Clone)]
pub struct LocalClient {
    shard: usize,
    queue: Rc<LocalQueue>,
    remote: Client,
}

impl LocalClient {
    /// A client of the shard that drains this queue.
    pub fn new(shard: usize, queue: Rc<LocalQueue>, remote: Client) -> Self {
        Self {
            shard,
            queue,
            remote,
        }
    }

    /// As [`Client::connect`], from this shard.
    pub fn connect(&self, endpoint: &str) -> Result<Peer, ConnectError> {
        self.remote.connect_by(self.shard, endpoint, |connect| {
            self.queue
                .try_push(Submission::Connect(connect))
                .map_err(|_| NotSent::Full)
        })
    }

    /// Begins a message to the handler of this name.
    pub fn message(&self, handler: &str) -> Message<'_, Self> {
        Message::new(self, handler)
    }

    /// The client that other threads may use.
    pub fn remote(&self) -> &Client {
        &self.remote
    }
}

impl fmt::Debug for LocalClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalClient")
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

impl Submit for LocalClient {
    fn submit(&self, peer: &Peer, message: Submitted) -> Result<(), (NotSent, Submitted)> {
        if peer.shard() != self.shard {
            return self.remote.submit(peer, message);
        }
        take_credit(peer, message, |submission| {
            self.queue.try_push(submission).map_err(Refused::Full)
        })
    }

    fn now(&self) -> Instant {
        self.remote.now()
    }

    fn options(&self) -> &ClientOptions {
        self.remote.options()
    }
}

/// From the tasks of a shard to its reactor: bounded, and wakes the reactor if it is parked.
#[derive(Debug)]
pub struct LocalQueue {
    submissions: RefCell<VecDeque<Submission>>,
    capacity: usize,
    reactor: RefCell<Option<Waker>>,
}

impl LocalQueue {
    /// An empty queue.
    pub fn new(capacity: usize) -> Self {
        Self {
            submissions: RefCell::default(),
            capacity,
            reactor: RefCell::default(),
        }
    }

    /// The oldest submission.
    pub fn pop(&self) -> Option<Submission> {
        self.submissions.borrow_mut().pop_front()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.submissions.borrow().is_empty()
    }

    /// Whom to wake at the next submission.
    pub fn register(&self, reactor: &Waker) {
        *self.reactor.borrow_mut() = Some(reactor.clone());
    }

    fn try_push(&self, submission: Submission) -> Result<(), Submission> {
        let mut submissions = self.submissions.borrow_mut();
        if submissions.len() >= self.capacity {
            return Err(submission);
        }
        submissions.push_back(submission);
        if let Some(reactor) = self.reactor.borrow_mut().take() {
            reactor.wake();
        }
        Ok(())
    }
}

/// Begins a connection that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint cannot be read.
    #[error(transparent)]
    Endpoint(#[from] crate::error::EndpointError),
    /// The shard does not take it now.
    #[error("cannot connect: {0}")]
    NotAccepted(NotSent),
}

fn take_credit(
    peer: &Peer,
    message: Submitted,
    submit: impl FnOnce(Submission) -> Result<(), Refused<Submission>>,
) -> Result<(), (NotSent, Submitted)> {
    let bytes = message.payload.len();
    if !peer.credit().try_take(bytes) {
        return Err((NotSent::Full, message));
    }
    submit(Submission::Message(message)).map_err(|refused| {
        peer.credit().give_back(bytes);
        let (why, submission) = match refused {
            Refused::Full(submission) => (NotSent::Full, submission),
            Refused::Closed(submission) => (NotSent::Closed, submission),
        };
        match submission {
            Submission::Message(message) => (why, message),
            _ => unreachable!("what comes back is what was submitted"),
        }
    })
}

impl Submitted {
    /// Whom it goes to.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Whether somebody waits for its answer: it is not one-way.
    pub fn wants_answer(&self) -> bool {
        self.completion.is_some()
    }

    /// The error that gives the payload back.
    pub(super) fn refuse(self, why: NotSent) -> SendError {
        SendError {
            why,
            payload: self.payload,
        }
    }
}
