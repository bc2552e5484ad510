//! The engine on libzmq: the reference that proves our bytes right.
//!
//! A shard has one ROUTER for all that it listens at and one DEALER for each connection that it
//! makes. libzmq's own I/O threads move the bytes, so a message crosses four threads on its way;
//! this engine cannot be fast.
//!
//! `ZMQ_FD` is edge-triggered in spirit: it tells of commands to a socket, not of messages, and
//! each call on the socket may consume the command that would have told. So a socket that the
//! descriptor named, or that we have sent on, is *ready* until a receive finds nothing; only then
//! may the shard rely on the descriptor again.
//!
//! What libzmq does not let us do: end one accepted connection (we stop listening to it instead),
//! send heartbeats without risking the process (`socket.rs` says why), stop accepting without
//! ending those accepted before, learn that an accepted peer has gone before a send to it fails,
//! jitter reconnects fully, bound handshake metadata or the number of connections in their
//! handshake.
//!
//! Nor does it tell in time whose process is at the other end of an ipc connection: it has no
//! filter by user as it is built here, and a monitor names a descriptor that may be closed, and
//! another's, by the time we read of it. The modes of the socket and its directory keep others from
//! connecting to us; nothing keeps us from connecting to a socket of another user's.

mod accepted;
mod descriptor;
mod dialed;
mod listen;
mod socket;

use std::{
    collections::VecDeque,
    hash::Hash,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use quanta::Instant;
use rustc_hash::FxHashSet;
use rustix::{event::epoll, time::Timespec};

use self::{accepted::Router, dialed::Dealer};
use super::{ConnectionId, Engine, EngineOptions, Event, Outgoing, Slots};
use crate::{config::Endpoint, error::EngineError, wire::Outbox};

/// libzmq's context, with its I/O threads; all shards of a runtime share one.
///
/// Dropped last, it waits until what its sockets have sent is written, at most for their linger.
#[derive(Clone)]
pub struct Context(zmq::Context);

impl Context {
    /// Starts the I/O threads, from a thread that is not pinned: they inherit its CPU mask, and
    /// beside a spinning shard on one CPU they would starve.
    pub fn new(io_threads: i32) -> Result<Self, EngineError> {
        let context = zmq::Context::new();
        let started = context
            .set_io_threads(io_threads)
            .and_then(|()| context.socket(zmq::PAIR));
        started.map_err(|error| EngineError::Socket(error.to_string()))?;
        Ok(Self(context))
    }
}

/// The [`Engine`] on libzmq. One per shard.
pub struct Libzmq {
    context: zmq::Context,
    options: EngineOptions,
    epoll: OwnedFd,
    epoll_events: Vec<epoll::Event>,
    router: Option<Router>,
    links: Slots<Link>,
    /// Sockets to be received from until they have nothing more.
    ready: Once<Token>,
    /// Connections whose outbox holds something, or may.
    dirty: Once<ConnectionId>,
    /// Accepted peers that a flush found gone; the next poll tells.
    gone: Vec<ConnectionId>,
    frames: FrameSlots,
    /// The most messages that stood in one outbox as it was flushed.
    outgoing_most: usize,
}

/// A connection: how its messages leave, and what waits to.
enum Link {
    Accepted(accepted::Peer),
    Dialed(Box<Dealer>),
}

/// What a readiness event speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Token {
    Router,
    Dealer(ConnectionId),
}

/// The frames of the message that is being received; libzmq's memory, reused.
struct FrameSlots {
    routing_id: zmq::Message,
    header: zmq::Message,
    payload: zmq::Message,
    surplus: zmq::Message,
}

/// A queue that holds each item at most once.
struct Once<T> {
    order: VecDeque<T>,
    members: FxHashSet<T>,
}

impl Libzmq {
    /// An engine in this context.
    pub fn new(context: &Context, options: EngineOptions) -> Result<Self, EngineError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| EngineError::Socket(errno.to_string()))?;
        Ok(Self {
            context: context.0.clone(),
            options,
            epoll,
            epoll_events: Vec::with_capacity(64),
            router: None,
            links: Slots::new(),
            ready: Once::default(),
            dirty: Once::default(),
            gone: Vec::new(),
            outgoing_most: 0,
            frames: FrameSlots {
                routing_id: zmq::Message::new(),
                header: zmq::Message::new(),
                payload: zmq::Message::new(),
                surplus: zmq::Message::new(),
            },
        })
    }

    fn dial(&mut self, to: &Endpoint, is_once: bool) -> Result<ConnectionId, EngineError> {
        let dealer = Dealer::connect(&self.context, &self.options, to, is_once)?;
        let id = self.links.insert(Link::Dialed(Box::new(dealer)));
        let Some(Link::Dialed(dealer)) = self.links.get_mut(id) else {
            unreachable!("was just inserted")
        };
        if let Err(error) = watch_dealer(&self.epoll, dealer, id) {
            self.links.remove(id);
            return Err(error);
        }
        self.ready.push(Token::Dealer(id));
        Ok(id)
    }

    /// Asks the descriptors which sockets have commands.
    fn collect_ready(&mut self) {
        self.epoll_events.clear();
        let no_wait = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let buffer = rustix::buffer::spare_capacity(&mut self.epoll_events);
        // EINTR is the only error that can come; the next turn asks again.
        let _ = epoll::wait(&self.epoll, buffer, Some(&no_wait));
        for at in 0..self.epoll_events.len() {
            let token = Token::from_u64(self.epoll_events[at].data.u64());
            self.ready.push(token);
        }
    }

    /// Whether something can be received from this socket now.
    fn has_input(&self, token: Token) -> bool {
        let socket = match token {
            Token::Router => self.router.as_ref().map(Router::socket),
            Token::Dealer(id) => match self.links.get(id) {
                Some(Link::Dialed(dealer)) => Some(dealer.socket()),
                _ => None,
            },
        };
        let events = socket.and_then(|socket| socket.get_events().ok());
        events.is_some_and(|events| events.contains(zmq::POLLIN))
    }

    fn tell_of_the_gone(&mut self, sink: &mut impl FnMut(Event<'_>)) -> usize {
        let count = self.gone.len();
        if let Some(router) = &mut self.router {
            for connection in self.gone.drain(..) {
                router.forget(&mut self.links, connection, sink);
            }
        }
        count
    }

    fn receive(
        &mut self,
        token: Token,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        match token {
            Token::Router => match &mut self.router {
                Some(router) => router.receive(
                    &mut self.links,
                    &mut self.dirty,
                    &mut self.frames,
                    &self.options,
                    now,
                    messages_max,
                    sink,
                ),
                None => 0,
            },
            Token::Dealer(id) => match self.links.get_mut(id) {
                Some(Link::Dialed(dealer)) => {
                    let count = dealer.receive(id, &mut self.frames, messages_max, sink);
                    if dealer.is_spent() && dealer.is_once() {
                        dealer.give_up();
                        self.dirty.remove(&id);
                        self.links.remove(id);
                        return count;
                    }
                    if dealer.is_spent() {
                        let renewed = dealer
                            .renew(&self.context, &self.options)
                            .and_then(|()| watch_dealer(&self.epoll, dealer, id));
                        if let Err(error) = renewed {
                            tracing::error!(%error, "cannot connect anew with a fresh socket");
                        }
                        self.ready.push(token);
                    }
                    if dealer.outbox().is_some_and(|outbox| !outbox.is_empty()) {
                        self.dirty.push(id);
                    }
                    count
                }
                _ => 0,
            },
        }
    }
}

impl Engine for Libzmq {
    fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, EngineError> {
        if self.router.is_none() {
            let router = Router::new(&self.context, &self.options)?;
            watch(&self.epoll, router.socket(), Token::Router)?;
            self.router = Some(router);
        }
        let router = self.router.as_mut().expect("was just made");
        let bound = router.listen(at)?;
        self.ready.push(Token::Router);
        Ok(bound)
    }

    fn stop_listening(&mut self) {
        if let Some(router) = &mut self.router {
            router.stop_listening();
        }
    }

    fn connect(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        self.dial(to, false)
    }

    fn connect_once(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        self.dial(to, true)
    }

    fn close(&mut self, connection: ConnectionId) {
        self.dirty.remove(&connection);
        if let Some(Link::Accepted(peer)) = self.links.get_mut(connection) {
            peer.mute();
            return;
        }
        self.ready.remove(&Token::Dealer(connection));
        // Closing the sockets takes their descriptors out of the epoll set.
        self.links.remove(connection);
    }

    fn redial(&mut self, connection: ConnectionId) {
        if let Some(Link::Dialed(dealer)) = self.links.get_mut(connection)
            && dealer.end()
        {
            self.ready.push(Token::Dealer(connection));
        }
    }

    fn outbox(&mut self, connection: ConnectionId) -> Option<&mut Outbox> {
        let outbox = self.links.get_mut(connection)?.outbox()?;
        self.dirty.push(connection);
        Some(outbox)
    }

    fn look(&self, connection: ConnectionId) -> Option<&Outbox> {
        Some(match self.links.get(connection)? {
            Link::Accepted(peer) => peer.look(),
            Link::Dialed(dealer) => dealer.look(),
        })
    }

    fn poll(
        &mut self,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        self.collect_ready();
        let mut count = self.tell_of_the_gone(sink);
        // Each socket once, from the front; one with more to give goes to the back.
        for _ in 0..self.ready.len() {
            if count >= messages_max {
                break;
            }
            let Some(token) = self.ready.pop() else { break };
            let room = messages_max - count;
            let received = self.receive(token, now, room, sink);
            count += received;
            if received == room {
                self.ready.push(token);
            }
        }
        count
    }

    fn flush(&mut self, _now: Instant) -> usize {
        let mut taken = 0;
        for _ in 0..self.dirty.len() {
            let Some(id) = self.dirty.pop() else { break };
            let Some(link) = self.links.get_mut(id) else {
                continue;
            };
            let waiting = link.outbox().map_or(0, |outbox| outbox.messages());
            self.outgoing_most = self.outgoing_most.max(waiting);
            let (sent, token) = match (&mut *link, &self.router) {
                (Link::Dialed(dealer), _) => (dealer.flush(), Token::Dealer(id)),
                (Link::Accepted(peer), Some(router)) => match router.flush(peer) {
                    Ok(sent) => (sent, Token::Router),
                    Err(sent) => {
                        taken += sent;
                        self.gone.push(id);
                        self.ready.push(Token::Router);
                        continue;
                    }
                },
                (Link::Accepted(_), None) => unreachable!("a peer was accepted by a router"),
            };
            taken += sent;
            let is_blocked = link.outbox().is_some_and(|outbox| !outbox.is_empty());
            if is_blocked {
                self.dirty.push(id);
            }
            // Sending, even in vain, may have consumed the command that told of a message. Asking
            // each time would keep a blocked connection's shard from ever parking.
            if sent > 0 || is_blocked && self.has_input(token) {
                self.ready.push(token);
            }
        }
        taken
    }

    fn outgoing(&self) -> Outgoing {
        let links = self.links.iter();
        let outboxes = links.filter_map(|(id, _)| self.look(id));
        Outgoing {
            now: outboxes.map(Outbox::messages).max().unwrap_or(0),
            most: self.outgoing_most,
        }
    }

    fn is_flushed(&self) -> bool {
        self.dirty.is_empty()
    }

    fn next_wake(&self) -> Option<Instant> {
        None
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn may_park(&mut self) -> bool {
        self.collect_ready();
        self.ready.is_empty() && self.gone.is_empty()
    }
}

impl<T: Copy + Eq + Hash> Once<T> {
    fn push(&mut self, item: T) {
        if self.members.insert(item) {
            self.order.push_back(item);
        }
    }

    fn pop(&mut self) -> Option<T> {
        let item = self.order.pop_front()?;
        self.members.remove(&item);
        Some(item)
    }

    fn remove(&mut self, item: &T) {
        if self.members.remove(item) {
            self.order.retain(|other| other != item);
        }
    }

    fn len(&self) -> usize {
        self.order.len()
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            members: FxHashSet::default(),
        }
    }
}

impl Link {
    fn outbox(&mut self) -> Option<&mut Outbox> {
        match self {
            Link::Accepted(peer) => peer.outbox(),
            Link::Dialed(dealer) => dealer.outbox(),
        }
    }
}

impl Token {
    /// As epoll keeps it: 0 is the ROUTER; generations begin at 1, so no connection is 0.
    fn to_u64(self) -> u64 {
        match self {
            Token::Router => 0,
            Token::Dealer(id) => id.to_u64(),
        }
    }

    fn from_u64(data: u64) -> Self {
        match data {
            0 => Token::Router,
            data => Token::Dealer(ConnectionId::from_u64(data)),
        }
    }
}

fn watch_dealer(epoll: &OwnedFd, dealer: &Dealer, id: ConnectionId) -> Result<(), EngineError> {
    watch(epoll, dealer.socket(), Token::Dealer(id))?;
    watch(epoll, dealer.monitor(), Token::Dealer(id))
}

/// Adds a socket's `ZMQ_FD` to the shard's epoll set.
fn watch(epoll: &OwnedFd, socket: &zmq::Socket, token: Token) -> Result<(), EngineError> {
    let data = epoll::EventData::new_u64(token.to_u64());
    descriptor::of(socket)
        .and_then(|descriptor| Ok(epoll::add(epoll, descriptor, data, epoll::EventFlags::IN)?))
        .map_err(|error| EngineError::Socket(error.to_string()))
}

/// Receives what follows the routing id, if there is one: header, payload, and whatever goes
/// beyond, which is read and dropped so that the next receive begins with a new message. Returns
/// how many frames these were.
fn receive_frames(socket: &zmq::Socket, frames: &mut FrameSlots) -> zmq::Result<usize> {
    receive(socket, &mut frames.header)?;
    if !frames.header.get_more() {
        return Ok(1);
    }
    receive(socket, &mut frames.payload)?;
    let mut count = 2;
    let mut more = frames.payload.get_more();
    while more {
        receive(socket, &mut frames.surplus)?;
        more = frames.surplus.get_more();
        count += 1;
    }
    Ok(count)
}

fn receive(socket: &zmq::Socket, frame: &mut zmq::Message) -> zmq::Result<()> {
    loop {
        match socket.recv(frame, zmq::DONTWAIT) {
            Err(zmq::Error::EINTR) => {}
            result => return result,
        }
    }
}

fn send(socket: &zmq::Socket, frame: &[u8], flags: i32) -> zmq::Result<()> {
    loop {
        match socket.send(frame, flags | zmq::DONTWAIT) {
            Err(zmq::Error::EINTR) => {}
            result => return result,
        }
    }
}
