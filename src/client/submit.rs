//! The ways from a caller to the shard that owns the peer's connection.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use quanta::{Clock, Instant};
use uuid::Uuid;

use super::{
    Directory, Message, RemoteAnswer,
    call::Outcome,
    order::{Order, PAYLOAD_BYTES},
};
use crate::{
    config::Endpoint,
    error::{NotSent, SendError},
    events::{Hub, Subscription},
    peers::{Account, AccountSnapshot, Credit, PeerId, PeerShared},
    route::{Port, Refused},
    wire::HandlerKey,
};

/// What a caller asks of a shard.
#[derive(Debug)]
pub enum Submission {
    /// Nobody speaks of the peer any more.
    Close(PeerId),
    /// Nobody waits any more for some call, which is to be looked for.
    Abandoned,
    /// Send a message.
    Message(Submitted),
}

/// A connection to be made.
#[derive(Debug)]
pub struct Connect {
    /// By which the caller speaks of the peer from now on.
    pub peer: PeerId,
    /// Where it leads.
    pub to: Target,
    /// Its credit and account.
    pub shared: Arc<PeerShared>,
    /// All messages go by this connection, whichever shard runs them.
    pub is_routed: bool,
    /// If tcp leads to a process of this host that listens by ipc, too, it is reached so.
    pub prefers_ipc: bool,
}

/// Whom a connection leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Whoever listens there: it is dialed.
    Endpoint(Endpoint),
    /// The process of this instance, which dials this one: its connections are used.
    Caller(Uuid),
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

/// A message on its way from another thread to the shard that sends it. Its credit is taken.
#[derive(Debug)]
pub struct Submitted {
    pub(super) peer: PeerId,
    pub(super) order: Order,
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

/// A handle to a process that this one connects to, or that has connected to this one
/// ([`Client::peer`]). Cheap to clone; a connection that was dialed is closed with the last clone
/// and the last call that is under way.
#[derive(Clone)]
pub struct Peer(pub(super) Arc<PeerHandle>);

pub(super) struct PeerHandle {
    pub(super) id: PeerId,
    shard: usize,
    endpoint: Option<Endpoint>,
    port: Port<Submission>,
    shared: Arc<PeerShared>,
}

impl Peer {
    /// Where the peer was dialed; `None` if it has connected to this process.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.0.endpoint.as_ref()
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

    /// Has the shard look for calls that nobody waits for. Without room in the inbox they go on
    /// until their deadlines: a drop must not block.
    pub(super) fn abandon(&self) {
        let _ = self.0.port.try_send(Submission::Abandoned);
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
        match &self.0.endpoint {
            Some(endpoint) => write!(f, "Peer({} at {endpoint})", self.0.id),
            None => write!(f, "Peer({})", self.0.id),
        }
    }
}

/// What the builder needs of a client. Nothing here blocks.
pub trait Submit {
    /// What waits for a call's outcome.
    type Answer: Future<Output = Option<Outcome>> + Unpin + 'static;
    /// An empty buffer for a payload that is yet to be written.
    fn buffer(&self) -> Vec<u8>;
    /// Hands a one-way message to the shard that owns the peer's connection, or gives its payload
    /// back.
    fn one_way(&self, peer: &Peer, order: Order) -> Result<(), SendError>;
    /// Likewise a message that is answered.
    fn call(&self, peer: &Peer, order: Order, within: Duration) -> Result<Self::Answer, SendError>;
    /// The limits to keep.
    fn options(&self) -> &ClientOptions;
    /// The time that a call may take that names none.
    fn within(&self) -> Duration;
}

/// Sends from any thread and any executor. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    state: Arc<ClientState>,
    /// Its calls end by then, unless they say otherwise: so does the call that is being served.
    until: Option<Instant>,
    prefers_ipc: bool,
}

struct ClientState {
    ports: Vec<ShardPort>,
    next_shard: AtomicUsize,
    clock: Clock,
    options: ClientOptions,
    hub: Arc<Hub>,
    directory: Arc<Directory>,
}

impl Client {
    /// A client of the shards behind these ports.
    pub fn new(ports: Vec<ShardPort>, clock: Clock, options: ClientOptions) -> Self {
        Self {
            state: Arc::new(ClientState {
                ports,
                next_shard: AtomicUsize::new(0),
                clock,
                options,
                hub: Arc::default(),
                directory: Arc::default(),
            }),
            until: None,
            prefers_ipc: false,
        }
    }

    /// Whether the connections that are made by it are moved from tcp to ipc where both ends are on
    /// one host; at first they are not. As the configuration's `client.prefer_ipc`.
    pub fn with_prefer_ipc(self, prefers_ipc: bool) -> Self {
        Self {
            prefers_ipc,
            ..self
        }
    }

    /// Begins to connect to a process, from the shards in turn, and returns at once: messages wait
    /// for the connection until their deadline. The error says what is wrong with the endpoint,
    /// or that the runtime cannot take it now.
    ///
    /// Which shard runs what the process says in its welcome. Each message then goes straight to
    /// the shard that runs it, by a connection that its first such message opens, at the same host;
    /// what cannot be reached so within a second is routed there. What runs wherever it arrives
    /// goes to the shard that was dialed, or, if that is shard 0, from shard k to shard k (modulo
    /// their number).
    ///
    /// A process that is dialed by tcp, and runs on this host and listens by ipc, too, is reached
    /// by ipc, if `client.prefer_ipc` says so: that is tried before the first message goes out, and
    /// only the same process will do. [`connect_routed`](Self::connect_routed) does not do that.
    pub fn connect(&self, endpoint: &str) -> Result<Peer, ConnectError> {
        let shard = self.state.next_shard.fetch_add(1, Relaxed) % self.state.ports.len();
        self.connect_from(shard, endpoint)
    }

    /// As [`connect`](Self::connect), from this shard.
    ///
    /// # Panics
    ///
    /// If there is no such shard.
    pub fn connect_from(&self, shard: usize, endpoint: &str) -> Result<Peer, ConnectError> {
        self.connect_by(shard, endpoint, |connect| self.ask_for(shard, connect))
    }

    /// As [`connect_from`](Self::connect_from), but by one connection alone: the process routes
    /// what another of its shards runs, at the price of a hop. For a tunnel or a firewall that lets
    /// one port through.
    ///
    /// # Panics
    ///
    /// If there is no such shard.
    pub fn connect_routed(&self, shard: usize, endpoint: &str) -> Result<Peer, ConnectError> {
        self.connect_by(shard, endpoint, |connect| {
            let is_routed = true;
            self.ask_for(
                shard,
                Connect {
                    is_routed,
                    ..connect
                },
            )
        })
    }

    /// What happens in the runtime from now on: see [`events`](crate::events). Events of a shard
    /// that has not ended its turn may be of what was before. Waits for a lock for moments at most.
    pub fn events(&self) -> Subscription {
        self.state.hub.subscribe()
    }

    /// Where its shards and its runtime tell of events.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.state.hub
    }

    /// The peers that its shards know.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.state.directory
    }

    /// Begins a message to the handler of this name, or of this key: `HandlerKey::of` is a
    /// `const fn`.
    pub fn message(&self, handler: impl Into<HandlerKey>) -> Message<'_, Self> {
        Message::new(self, handler.into())
    }

    /// One for a handler that serves a call with this deadline.
    pub(crate) fn until(&self, deadline: Option<Instant>) -> Self {
        Self {
            state: self.state.clone(),
            until: deadline,
            prefers_ipc: self.prefers_ipc,
        }
    }

    pub(super) fn ask_for(&self, shard: usize, connect: Connect) -> Result<(), NotSent> {
        let asked = self.state.ports[shard].connects.try_send(connect);
        asked.map_err(|refused| match refused {
            Refused::Full(_) => NotSent::Full,
            Refused::Closed(_) => NotSent::Closed,
        })
    }

    pub(super) fn connect_by(
        &self,
        shard: usize,
        endpoint: &str,
        submit: impl FnOnce(Connect) -> Result<(), NotSent>,
    ) -> Result<Peer, ConnectError> {
        let endpoint: Endpoint = endpoint.parse()?;
        let shared = self.new_shared();
        let peer = PeerId::unique();
        submit(Connect {
            peer,
            to: Target::Endpoint(endpoint.clone()),
            shared: shared.clone(),
            is_routed: false,
            prefers_ipc: self.prefers_ipc,
        })
        .map_err(ConnectError::NotAccepted)?;
        let handle = self.new_handle(peer, shard, Some(endpoint), shared);
        self.state.directory.note_dialed(&handle);
        Ok(Peer(handle))
    }

    /// The credit and the account of a new peer.
    pub(super) fn new_shared(&self) -> Arc<PeerShared> {
        let options = &self.state.options;
        Arc::new(PeerShared {
            credit: Credit::new(options.outgoing_messages_max, options.outgoing_bytes_max),
            account: Account::default(),
        })
    }

    pub(super) fn new_handle(
        &self,
        id: PeerId,
        shard: usize,
        endpoint: Option<Endpoint>,
        shared: Arc<PeerShared>,
    ) -> Arc<PeerHandle> {
        let port = self.state.ports[shard].submissions.clone();
        Arc::new(PeerHandle {
            id,
            shard,
            endpoint,
            port,
            shared,
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("shards", &self.state.ports.len())
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn now(&self) -> Instant {
        self.state.clock.now()
    }

    fn submit(&self, peer: &Peer, message: Submitted) -> Result<(), SendError> {
        let bytes = message.order.payload.len();
        if !peer.credit().try_take(bytes) {
            // A shard that has stopped gives no credit back: nobody must wait for it.
            let why = match peer.0.port.is_closed() {
                true => NotSent::Closed,
                false => NotSent::Full,
            };
            return Err(message.order.refuse(why));
        }
        let submitted = peer.0.port.try_send(Submission::Message(message));
        submitted.map_err(|refused| {
            peer.credit().give_back(bytes);
            let (why, submission) = match refused {
                Refused::Full(submission) => (NotSent::Full, submission),
                Refused::Closed(submission) => (NotSent::Closed, submission),
            };
            match submission {
                Submission::Message(message) => message.order.refuse(why),
                _ => unreachable!("what comes back is what was submitted"),
            }
        })
    }
}

/// Each call allocates a channel, and a written payload its buffer.
impl Submit for Client {
    type Answer = RemoteAnswer;

    fn buffer(&self) -> Vec<u8> {
        Vec::with_capacity(PAYLOAD_BYTES)
    }

    fn one_way(&self, peer: &Peer, order: Order) -> Result<(), SendError> {
        let message = Submitted {
            peer: peer.id(),
            order,
            submitted_at: self.now(),
            deadline: None,
            completion: None,
        };
        self.submit(peer, message)
    }

    fn call(&self, peer: &Peer, order: Order, within: Duration) -> Result<RemoteAnswer, SendError> {
        let (completion, answer) = oneshot::async_channel();
        let submitted_at = self.now();
        let message = Submitted {
            peer: peer.id(),
            order,
            submitted_at,
            deadline: Some(submitted_at + within),
            completion: Some(completion),
        };
        self.submit(peer, message)?;
        Ok(RemoteAnswer::new(answer, peer.clone()))
    }

    fn options(&self) -> &ClientOptions {
        &self.state.options
    }

    #[inline]
    fn within(&self) -> Duration {
        let most = self.state.options.deadline;
        self.until.map_or(most, |until| {
            until.saturating_duration_since(self.now()).min(most)
        })
    }
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
}

/// A handle to a peer that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint cannot be read.
    #[error(transparent)]
    Endpoint(#[from] crate::error::EndpointError),
    /// The shard does not take it now.
    #[error("cannot connect: {0}")]
    NotAccepted(NotSent),
    /// No peer of this instance is known.
    #[error("no peer of instance {0} is connected")]
    Unknown(Uuid),
    /// Whoever has sent the message has not said hello.
    #[error("the sender has said no hello, and is no peer")]
    Stranger,
}
