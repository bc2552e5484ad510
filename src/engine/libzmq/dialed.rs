//! The connecting side: one DEALER for each connection, and a monitor that tells when it is up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{
    ConnectionId, EngineOptions, Event, FrameSlots, receive, receive_frames, send, socket,
};
use crate::{config::Endpoint, engine::Incoming, error::EngineError, wire::Outbox};

pub(super) struct Dealer {
    socket: zmq::Socket,
    /// Where libzmq reports on the socket's connection.
    monitor: zmq::Socket,
    outbox: Outbox,
    up: bool,
}

/// What the monitor tells of, as far as it matters.
enum Change {
    Up,
    Down,
}

impl Dealer {
    pub(super) fn connect(
        context: &zmq::Context,
        options: &EngineOptions,
        to: &Endpoint,
    ) -> Result<Self, EngineError> {
        let socket = socket::new(context, zmq::DEALER, options)?;
        // Messages wait in our outbox, where they can still be counted and taken back, and not in a
        // libzmq queue for a connection that there may never be.
        socket.set_immediate(true).map_err(socket::error)?;
        let monitor = monitor(context, &socket)?;
        socket
            .connect(&to.to_string())
            .map_err(|error| EngineError::Connect {
                endpoint: to.to_string(),
                why: error.to_string(),
            })?;
        let outbox = Outbox::new(options.outgoing_messages_max, options.outgoing_bytes_max);
        Ok(Self {
            socket,
            monitor,
            outbox,
            up: false,
        })
    }

    pub(super) fn socket(&self) -> &zmq::Socket {
        &self.socket
    }

    pub(super) fn monitor(&self) -> &zmq::Socket {
        &self.monitor
    }

    pub(super) fn outbox(&mut self) -> Option<&mut Outbox> {
        self.up.then_some(&mut self.outbox)
    }

    pub(super) fn taken(&self) -> u64 {
        self.outbox.taken()
    }

    /// While the connection is up its messages come before what the monitor tells: what the peer
    /// answered before it went is not lost. While it is not, the monitor comes first, so that
    /// nothing is handled on a connection that has not been greeted.
    pub(super) fn receive(
        &mut self,
        connection: ConnectionId,
        frames: &mut FrameSlots,
        messages_max: usize,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> usize {
        let mut count = 0;
        while count < messages_max {
            if self.up {
                count += self.receive_messages(connection, frames, messages_max - count, sink);
            }
            let Some(change) = self.next_change(frames) else {
                break;
            };
            match (change, self.up) {
                (Change::Up, false) => {
                    self.up = true;
                    sink(Event::Up(connection));
                }
                (Change::Down, true) => {
                    // All that is left; `hwm` bounds it.
                    count += self.receive_messages(connection, frames, usize::MAX, sink);
                    self.up = false;
                    let (taken, unsent) = (self.outbox.taken(), self.outbox.clear());
                    sink(Event::Down {
                        connection,
                        taken,
                        unsent,
                    });
                }
                _ => continue,
            }
            count += 1;
        }
        count
    }

    fn receive_messages(
        &mut self,
        connection: ConnectionId,
        frames: &mut FrameSlots,
        messages_max: usize,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> usize {
        let mut count = 0;
        while count < messages_max {
            match receive_frames(&self.socket, frames) {
                Ok(2) => sink(Event::Message(Incoming {
                    connection,
                    header: &frames.header,
                    payload: &mut frames.payload,
                    outbox: &mut self.outbox,
                })),
                Ok(frames) => sink(Event::Malformed { connection, frames }),
                Err(_) => break,
            }
            count += 1;
        }
        count
    }

    /// Sends what stands in the outbox, as far as libzmq takes it.
    pub(super) fn flush(&mut self) -> usize {
        let mut sent = 0;
        while let Some(message) = self.outbox.front() {
            // Full, or the connection has just gone: the monitor will tell.
            if send(&self.socket, message.header, zmq::SNDMORE).is_err() {
                break;
            }
            if let Err(error) = send(&self.socket, message.payload, 0) {
                tracing::warn!(%error, "libzmq refused the rest of a message");
            }
            self.outbox.pop_front();
            sent += 1;
        }
        sent
    }

    /// The monitor's next event that matters: two frames, of which the first begins with the
    /// event's number.
    fn next_change(&self, frames: &mut FrameSlots) -> Option<Change> {
        loop {
            receive(&self.monitor, &mut frames.surplus).ok()?;
            let event = frames
                .surplus
                .first_chunk()
                .map(|bytes| u16::from_ne_bytes(*bytes));
            let mut more = frames.surplus.get_more();
            while more {
                receive(&self.monitor, &mut frames.surplus).ok()?;
                more = frames.surplus.get_more();
            }
            if event == Some(zmq::SocketEvent::HANDSHAKE_SUCCEEDED.to_raw()) {
                return Some(Change::Up);
            }
            if event == Some(zmq::SocketEvent::DISCONNECTED.to_raw()) {
                return Some(Change::Down);
            }
        }
    }
}

fn monitor(context: &zmq::Context, socket: &zmq::Socket) -> Result<zmq::Socket, EngineError> {
    /// Names must differ within a context, and shards share one.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("inproc://corelane-monitor-{}", NEXT.fetch_add(1, Relaxed));
    let events =
        zmq::SocketEvent::HANDSHAKE_SUCCEEDED as i32 | zmq::SocketEvent::DISCONNECTED as i32;
    socket.monitor(&name, events).map_err(socket::error)?;
    let monitor = context.socket(zmq::PAIR).map_err(socket::error)?;
    monitor
        .set_linger(0)
        .and_then(|()| monitor.connect(&name))
        .map_err(socket::error)?;
    Ok(monitor)
}
