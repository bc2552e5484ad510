//! The listening side: one ROUTER, and the peers that it has heard from.

use quanta::Instant;
use rustc_hash::FxHashMap;

use super::{
    ConnectionId, EngineOptions, Event, FrameSlots, Link, Once, Slots, listen, receive,
    receive_frames, send, socket,
};
use crate::{
    config::Endpoint,
    engine::{Incoming, socket_file::SocketFile},
    error::{EngineError, Lost},
    wire::{Outbox, Received},
};

/// Peers kept at most. libzmq does not say when one has gone, so the longest silent ones are
/// forgotten; one that speaks again is a new connection.
const PEERS_MAX: usize = 16_384;
/// How many are forgotten at once, so that the search for the oldest is paid seldom.
const FORGOTTEN_AT_ONCE: usize = PEERS_MAX / 8;

pub(super) struct Router {
    /// Before the socket, so that they go before it closes.
    files: Vec<SocketFile>,
    socket: zmq::Socket,
    by_routing_id: FxHashMap<Box<[u8]>, ConnectionId>,
    /// Whose last message found no room where it was to go. libzmq has one queue for all peers, so
    /// that all of them wait until it has.
    held: Option<ConnectionId>,
}

/// Somebody who has sent us something.
pub(super) struct Peer {
    routing_id: Box<[u8]>,
    outbox: Outbox,
    heard_at: Instant,
    /// Its messages are dropped unread: what closing an accepted connection comes down to here.
    muted: bool,
}

impl Router {
    pub(super) fn new(
        context: &zmq::Context,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        let socket = socket::new(context, zmq::ROUTER, options)?;
        // Without this a message to a full or lost peer would vanish without a word.
        socket.set_router_mandatory(true).map_err(socket::error)?;
        Ok(Self {
            files: Vec::new(),
            socket,
            by_routing_id: FxHashMap::default(),
            held: None,
        })
    }

    pub(super) fn socket(&self) -> &zmq::Socket {
        &self.socket
    }

    pub(super) fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, EngineError> {
        let bound = listen::bind(&self.socket, at)?;
        self.files.extend(SocketFile::of(&bound));
        Ok(bound)
    }

    /// Over ipc nobody finds the way in any more. Over tcp libzmq's sessions are the listener's
    /// children: `zmq_unbind` would end the connections that there are, so it goes on accepting,
    /// and what new connections send is the shard's to refuse.
    pub(super) fn stop_listening(&mut self) {
        self.files.clear();
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the engine's parts, borrowed apart"
    )]
    pub(super) fn receive(
        &mut self,
        links: &mut Slots<Link>,
        dirty: &mut Once<ConnectionId>,
        frames: &mut FrameSlots,
        options: &EngineOptions,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        self.held.take_if(|held| {
            let link = links.get(*held);
            !matches!(link, Some(Link::Accepted(peer)) if peer.outbox.is_held())
        });
        let mut count = 0;
        while count < messages_max && self.held.is_none() {
            if receive(&self.socket, &mut frames.routing_id).is_err() {
                break;
            }
            count += 1;
            let connection = self.peer_of(links, &frames.routing_id, options, now, sink);
            let frame_count = match frames.routing_id.get_more() {
                true => receive_frames(&self.socket, frames).unwrap_or(0),
                false => 0,
            };
            let Some(Link::Accepted(peer)) = links.get_mut(connection) else {
                unreachable!("was found or made above")
            };
            peer.heard_at = now;
            if peer.muted {
                continue;
            }
            if frame_count != 2 {
                sink(Event::Malformed {
                    connection,
                    frames: frame_count,
                });
                continue;
            }
            sink(Event::Message(Incoming {
                connection,
                since: None,
                message: Received::apart(&frames.header, &mut frames.payload),
                outbox: &mut peer.outbox,
            }));
            if !peer.outbox.is_empty() {
                dirty.push(connection);
            }
            if peer.outbox.is_held() {
                self.held = Some(connection);
            }
        }
        count
    }

    /// Sends what stands in a peer's outbox, as far as libzmq takes it. `Err` says how many
    /// messages went before the peer turned out to have gone.
    pub(super) fn flush(&self, peer: &mut Peer) -> Result<usize, usize> {
        let mut sent = 0;
        while let Some(message) = peer.outbox.front() {
            match send(&self.socket, &peer.routing_id, zmq::SNDMORE) {
                Ok(()) => {}
                // The peer's queue is full: the rest waits in the outbox.
                Err(zmq::Error::EAGAIN) => break,
                Err(_) => return Err(sent),
            }
            // The routing id was accepted, so the message's other frames are: libzmq takes all or
            // none.
            let whole = send(&self.socket, message.header, zmq::SNDMORE)
                .and_then(|()| send(&self.socket, message.payload, 0));
            if let Err(error) = whole {
                tracing::warn!(%error, "libzmq refused the rest of a message");
            }
            peer.outbox.pop_front();
            sent += 1;
        }
        Ok(sent)
    }

    /// Forgets a peer that has gone.
    pub(super) fn forget(
        &mut self,
        links: &mut Slots<Link>,
        connection: ConnectionId,
        sink: &mut impl FnMut(Event<'_>),
    ) {
        if let Some(Link::Accepted(mut peer)) = links.remove(connection) {
            self.by_routing_id.remove(&peer.routing_id);
            sink(Event::Down {
                connection,
                why: Lost::Closed,
                outbox: &mut peer.outbox,
            });
        }
    }

    fn peer_of(
        &mut self,
        links: &mut Slots<Link>,
        routing_id: &[u8],
        options: &EngineOptions,
        now: Instant,
        sink: &mut impl FnMut(Event<'_>),
    ) -> ConnectionId {
        if let Some(&connection) = self.by_routing_id.get(routing_id) {
            return connection;
        }
        if self.by_routing_id.len() >= PEERS_MAX {
            self.forget_the_silent(links, sink);
        }
        let connection = links.insert(Link::Accepted(Peer {
            routing_id: routing_id.into(),
            outbox: Outbox::new(options.outgoing_messages_max, options.outgoing_bytes_max),
            heard_at: now,
            muted: false,
        }));
        self.by_routing_id.insert(routing_id.into(), connection);
        sink(Event::Up(connection));
        connection
    }

    fn forget_the_silent(&mut self, links: &mut Slots<Link>, sink: &mut impl FnMut(Event<'_>)) {
        let mut silent: Vec<(Instant, ConnectionId)> = links
            .iter()
            .filter_map(|(id, link)| match link {
                Link::Accepted(peer) => Some((peer.heard_at, id)),
                Link::Dialed(_) => None,
            })
            .collect();
        silent.sort_unstable_by_key(|&(heard_at, _)| heard_at);
        for (_, connection) in silent.into_iter().take(FORGOTTEN_AT_ONCE) {
            self.forget(links, connection, sink);
        }
    }
}

impl Peer {
    pub(super) fn outbox(&mut self) -> Option<&mut Outbox> {
        (!self.muted).then_some(&mut self.outbox)
    }

    pub(super) fn look(&self) -> &Outbox {
        &self.outbox
    }

    pub(super) fn mute(&mut self) {
        self.muted = true;
        self.outbox.clear();
    }
}
