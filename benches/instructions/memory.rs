//! An engine in memory that costs next to nothing, so that what is counted is the shard's.

use std::{cell::Cell, num::NonZeroU32, os::fd::BorrowedFd, rc::Rc};

use corelane::{
    config::Endpoint,
    engine::{ConnectionId, Engine, Event, Incoming},
    error::EngineError,
    wire::{Header, Outbox, Received},
};
use quanta::Instant;

/// One accepted connection, on which one and the same message comes again and again. Nothing is
/// read or copied: it stands where it is handed over from.
pub(crate) struct Memory {
    peer: Rc<Peer>,
    connection: ConnectionId,
    is_up: bool,
    header: Vec<u8>,
    payload: Vec<u8>,
    outbox: Outbox,
}

/// The other end of a [`Memory`].
#[derive(Default)]
pub(crate) struct Peer {
    /// Messages that are to come.
    pub(crate) due: Cell<usize>,
    /// Messages that have come back.
    pub(crate) answers: Cell<u64>,
    /// Their bytes, framing included.
    pub(crate) answer_bytes: Cell<usize>,
}

impl Memory {
    pub(crate) fn new(header: &Header, payload: &[u8]) -> (Self, Rc<Peer>) {
        let peer = Rc::new(Peer::default());
        let engine = Self {
            peer: peer.clone(),
            connection: ConnectionId::new(0, NonZeroU32::MIN),
            is_up: false,
            header: header.encode().to_vec(),
            payload: payload.to_vec(),
            outbox: Outbox::new(1_000, 4 << 20),
        };
        (engine, peer)
    }
}

impl Engine for Memory {
    fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, EngineError> {
        Ok(at.clone())
    }

    fn stop_listening(&mut self) {}

    fn connect(&mut self, _to: &Endpoint) -> Result<ConnectionId, EngineError> {
        unreachable!("no shard here dials")
    }

    fn close(&mut self, _connection: ConnectionId) {
        unreachable!("nobody here gives a reason to be cut off")
    }

    fn outbox(&mut self, connection: ConnectionId) -> Option<&mut Outbox> {
        (connection == self.connection).then_some(&mut self.outbox)
    }

    fn look(&self, connection: ConnectionId) -> Option<&Outbox> {
        (connection == self.connection).then_some(&self.outbox)
    }

    fn poll(
        &mut self,
        _now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        if !self.is_up {
            self.is_up = true;
            sink(Event::Up(self.connection));
            return 1;
        }
        let due = self.peer.due.get();
        let mut count = 0;
        while count < due.min(messages_max) && !self.outbox.is_held() {
            sink(Event::Message(Incoming {
                connection: self.connection,
                message: Received::apart(&self.header, &mut self.payload),
                outbox: &mut self.outbox,
            }));
            count += 1;
        }
        self.peer.due.set(due - count);
        count
    }

    fn flush(&mut self, _now: Instant) -> usize {
        if self.outbox.is_empty() {
            return 0;
        }
        let bytes = self.outbox.bytes();
        let messages = self.outbox.advance(bytes);
        let Peer {
            answers,
            answer_bytes,
            ..
        } = &*self.peer;
        answers.set(answers.get() + messages as u64);
        answer_bytes.set(answer_bytes.get() + bytes);
        messages
    }

    fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    fn next_wake(&self) -> Option<Instant> {
        None
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn may_park(&mut self) -> bool {
        self.peer.due.get() == 0
    }
}
