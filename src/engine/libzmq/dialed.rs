//! The connecting side: one DEALER for each connection, and a monitor that tells when it is up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{
    ConnectionId, EngineOptions, Event, FrameSlots, receive, receive_frames, send, socket,
};
use crate::{
    config::Endpoint,
    engine::Incoming,
    error::{EngineError, Lost},
    wire::{Outbox, Received},
};

pub(super) struct Dealer {
    to: Endpoint,
    socket: zmq::Socket,
    /// Where libzmq reports on the socket's connection.
    monitor: zmq::Socket,
    outbox: Outbox,
    state: State,
    /// What fails or ends is not connected anew.
    is_once: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Down,
    Up,
    /// The connection has ended, but libzmq says so before it has handed over all that came in on
    /// it. Once it means to connect again, it has.
    Ending,
    /// All that came in may be received; then it is down.
    Ended,
    /// Down, and the socket is to be renewed.
    Spent,
}

/// What the monitor tells of, as far as it matters.
enum Change {
    HandshakeSucceeded,
    Disconnected,
    ConnectRetried,
}

impl Dealer {
    pub(super) fn connect(
        context: &zmq::Context,
        options: &EngineOptions,
        to: &Endpoint,
        is_once: bool,
    ) -> Result<Self, EngineError> {
        let (socket, monitor) = connect(context, options, to)?;
        let outbox = Outbox::new(options.outgoing_messages_max, options.outgoing_bytes_max);
        Ok(Self {
            to: to.clone(),
            socket,
            monitor,
            outbox,
            state: State::Down,
            is_once,
        })
    }

    /// Whether the socket's connection was lost: then it is to be renewed.
    pub(super) fn is_spent(&self) -> bool {
        self.state == State::Spent
    }

    /// Whether it is over with it, once its connection is.
    pub(super) fn is_once(&self) -> bool {
        self.is_once
    }

    /// What the socket still holds is dropped with it.
    pub(super) fn give_up(&self) {
        if let Err(error) = self.socket.set_linger(0) {
            tracing::warn!(%error, "what a lost connection holds is kept for its linger");
        }
    }

    /// Connects anew with another socket. What the old one still held for the lost connection is
    /// dropped with it: libzmq would send it on the next one, however late.
    pub(super) fn renew(
        &mut self,
        context: &zmq::Context,
        options: &EngineOptions,
    ) -> Result<(), EngineError> {
        // Whatever comes of it, libzmq goes on connecting the old one.
        self.state = State::Down;
        let (socket, monitor) = connect(context, options, &self.to)?;
        self.socket.set_linger(0).map_err(socket::error)?;
        silence(&self.socket);
        (self.socket, self.monitor) = (socket, monitor);
        Ok(())
    }

    /// What has come in is received, and then it is lost. False if it is not up.
    pub(super) fn end(&mut self) -> bool {
        let is_up = matches!(self.state, State::Up | State::Ending);
        if is_up {
            self.state = State::Ended;
        }
        is_up
    }

    pub(super) fn socket(&self) -> &zmq::Socket {
        &self.socket
    }

    pub(super) fn monitor(&self) -> &zmq::Socket {
        &self.monitor
    }

    pub(super) fn outbox(&mut self) -> Option<&mut Outbox> {
        (self.state == State::Up).then_some(&mut self.outbox)
    }

    pub(super) fn look(&self) -> &Outbox {
        &self.outbox
    }

    /// Receives messages first and looks at the monitor after: what the peer answered before it
    /// went is not lost. But nothing is received on a connection that has not been told of.
    pub(super) fn receive(
        &mut self,
        connection: ConnectionId,
        frames: &mut FrameSlots,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        let mut count = 0;
        loop {
            if self.state != State::Down {
                count += self.receive_messages(connection, frames, messages_max - count, sink);
            }
            if count == messages_max {
                return count;
            }
            if self.state == State::Ended {
                self.state = State::Spent;
                sink(Event::Down {
                    connection,
                    why: Lost::Closed,
                    outbox: &mut self.outbox,
                });
                self.outbox.clear();
                return count + 1;
            }
            let Some(change) = self.next_change(frames) else {
                return count;
            };
            self.state = match (self.state, change) {
                (State::Up, Change::Disconnected) => State::Ending,
                (State::Ending, Change::ConnectRetried) => State::Ended,
                (State::Down, Change::ConnectRetried) if self.is_once => State::Ended,
                (State::Down, Change::HandshakeSucceeded) => {
                    sink(Event::Up(connection));
                    count += 1;
                    State::Up
                }
                (state, _) => state,
            };
        }
    }

    fn receive_messages(
        &mut self,
        connection: ConnectionId,
        frames: &mut FrameSlots,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        let mut count = 0;
        while count < messages_max {
            match receive_frames(&self.socket, frames) {
                Ok(2) => sink(Event::Message(Incoming {
                    connection,
                    since: None,
                    message: Received::apart(&frames.header, &mut frames.payload),
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
        // Once the connection has ended, what is left is told as never sent.
        while self.state == State::Up
            && let Some(message) = self.outbox.front()
        {
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
            let is = |wanted: zmq::SocketEvent| event == Some(wanted.to_raw());
            if is(zmq::SocketEvent::HANDSHAKE_SUCCEEDED) {
                return Some(Change::HandshakeSucceeded);
            }
            if is(zmq::SocketEvent::DISCONNECTED) {
                return Some(Change::Disconnected);
            }
            if is(zmq::SocketEvent::CONNECT_RETRIED) {
                return Some(Change::ConnectRetried);
            }
        }
    }
}

/// A socket that connects, and its monitor.
///
/// Not `ZMQ_IMMEDIATE`: as a connection is lost, it drops what has come in on it and is not yet
/// received. What it is for, that messages wait in our outbox and not in a libzmq queue for a
/// connection that there may never be, comes from writing only while the connection is up.
fn connect(
    context: &zmq::Context,
    options: &EngineOptions,
    to: &Endpoint,
) -> Result<(zmq::Socket, zmq::Socket), EngineError> {
    let socket = socket::new(context, zmq::DEALER, options)?;
    let monitor = monitor(context, &socket)?;
    socket
        .connect(&to.to_string())
        .map_err(|error| EngineError::Connect {
            endpoint: to.to_string(),
            why: error.to_string(),
        })?;
    Ok((socket, monitor))
}

impl Drop for Dealer {
    fn drop(&mut self) {
        silence(&self.socket);
    }
}

/// Has a socket report nothing any more, before its monitor is closed. libzmq closes a socket when
/// it comes to it, and reports until then with a send that waits for ever for a reader that is
/// gone: its I/O thread would stand still, and with it every connection.
fn silence(socket: &zmq::Socket) {
    // The crate has no way to name no endpoint; one that nothing is reported to does as well.
    if let Err(error) = socket.monitor(&monitor_name(), 0) {
        tracing::warn!(%error, "cannot stop a monitor");
    }
}

/// Names must differ within a context, and shards share one.
fn monitor_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("inproc://corelane-monitor-{}", NEXT.fetch_add(1, Relaxed))
}

fn monitor(context: &zmq::Context, socket: &zmq::Socket) -> Result<zmq::Socket, EngineError> {
    let name = monitor_name();
    let events = zmq::SocketEvent::HANDSHAKE_SUCCEEDED as i32
        | zmq::SocketEvent::DISCONNECTED as i32
        | zmq::SocketEvent::CONNECT_RETRIED as i32;
    socket.monitor(&name, events).map_err(socket::error)?;
    let monitor = context.socket(zmq::PAIR).map_err(socket::error)?;
    monitor
        .set_linger(0)
        .and_then(|()| monitor.connect(&name))
        .map_err(socket::error)?;
    Ok(monitor)
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use tempfile::TempDir;

    use super::*;
    use crate::engine::{
        Engine,
        libzmq::{Context, Libzmq},
        plain_options,
    };

    /// Far beyond what libzmq takes, on a busy machine too.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn who_is_dialed_once_is_told_of_as_it_ends_and_not_dialed_again() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("socket");
        let at: Endpoint = format!("ipc://{}", path.display()).parse().unwrap();
        let context = Context::new(1).unwrap();
        let new = || Libzmq::new(&context, plain_options()).unwrap();
        let mut dialing = new();
        let id = dialing.connect_once(&at).unwrap();
        assert_eq!(until_told(&mut dialing), [(id, false)]);
        assert!(dialing.look(id).is_none());

        let mut serving = new();
        serving.listen(&at).unwrap();
        let id = dialing.connect_once(&at).unwrap();
        assert_eq!(until_told(&mut dialing), [(id, true)]);
        drop(serving);
        assert_eq!(until_told(&mut dialing), [(id, false)]);
        assert!(dialing.look(id).is_none());
        assert!(dialing.may_park());
    }

    /// Connections that have come up or gone down, once there is one.
    fn until_told(engine: &mut Libzmq) -> Vec<(ConnectionId, bool)> {
        let (began, mut told) = (Instant::now(), Vec::new());
        while told.is_empty() {
            engine.poll(quanta::Instant::now(), 10, &mut |event| match event {
                Event::Up(connection) => told.push((connection, true)),
                Event::Down { connection, .. } => told.push((connection, false)),
                event => panic!("{event:?}"),
            });
            assert!(began.elapsed() < PATIENCE, "nothing is told");
            thread::sleep(Duration::from_millis(1));
        }
        told
    }
}
