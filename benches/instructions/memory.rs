//! An engine in memory that costs next to nothing, so that what is counted is the shard's.

use std::{cell::Cell, num::NonZeroU32, ops::Range, os::fd::BorrowedFd, rc::Rc};

use corelane::{
    config::Endpoint,
    engine::{ConnectionId, Engine, Event, Incoming, Outgoing},
    error::EngineError,
    wire::{Header, Kind, Outbox, Received},
};
use quanta::Instant;

/// One connection, on which one and the same message comes again and again. Nothing is read or
/// copied: it stands where it is handed over from.
pub(crate) struct Memory {
    peer: Rc<Peer>,
    connection: ConnectionId,
    is_dialed: bool,
    /// Nobody has told the shard of the connection yet.
    is_new: bool,
    header: Vec<u8>,
    payload: Vec<u8>,
    outbox: Outbox,
}

/// The other end of a [`Memory`].
#[derive(Default)]
pub(crate) struct Peer {
    /// Messages that are to come.
    pub(crate) due: Cell<usize>,
    /// Messages that the shard has sent.
    pub(crate) sent: Cell<u64>,
    /// Their bytes, framing included.
    pub(crate) sent_bytes: Cell<usize>,
}

impl Memory {
    /// Its connection is accepted at once; what comes is up to the other end.
    pub(crate) fn accepting(header: &Header, payload: &[u8]) -> Self {
        Self {
            peer: Rc::default(),
            connection: ConnectionId::new(0, NonZeroU32::MIN),
            is_dialed: false,
            is_new: true,
            header: header.encode().to_vec(),
            payload: payload.to_vec(),
            outbox: Outbox::new(1_000, 4 << 20),
        }
    }

    /// Its connection is up as soon as it is asked for, and the other end answers requests with
    /// this payload: one of each turn, for it looks at the first message alone.
    pub(crate) fn dialing(payload: &[u8]) -> Self {
        Self {
            is_new: false,
            ..Self::accepting(&Header::new(Kind::Response, 0), payload)
        }
    }

    pub(crate) fn peer(&self) -> Rc<Peer> {
        self.peer.clone()
    }

    /// The other end of a dialed connection answers.
    fn answer_request(&mut self) {
        let Some(message) = self.outbox.front() else {
            return;
        };
        if message.header[KIND_AT] == Kind::Request as u8 {
            self.header[CORRELATION_AT].copy_from_slice(&message.header[CORRELATION_AT]);
            self.peer.due.set(self.peer.due.get() + 1);
        }
    }
}

/// In an encoded header.
const KIND_AT: usize = 3;
const CORRELATION_AT: Range<usize> = 8..16;

impl Engine for Memory {
    fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, EngineError> {
        Ok(at.clone())
    }

    fn stop_listening(&mut self) {}

    fn connect(&mut self, _to: &Endpoint) -> Result<ConnectionId, EngineError> {
        (self.is_dialed, self.is_new) = (true, true);
        Ok(self.connection)
    }

    fn connect_once(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        self.connect(to)
    }

    fn close(&mut self, _connection: ConnectionId) {
        unreachable!("nobody here gives a reason to be cut off")
    }

    fn redial(&mut self, _connection: ConnectionId) {
        unreachable!("likewise")
    }

    fn outbox(&mut self, connection: ConnectionId) -> Option<&mut Outbox> {
        (connection == self.connection).then_some(&mut self.outbox)
    }

    fn look(&self, connection: ConnectionId) -> Option<&Outbox> {
        (connection == self.connection).then_some(&self.outbox)
    }

    fn poll(
        &mut self,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        if self.is_new {
            self.is_new = false;
            sink(Event::Up(self.connection));
            return 1;
        }
        let due = self.peer.due.get();
        let mut count = 0;
        while count < due.min(messages_max) && !self.outbox.is_held() {
            sink(Event::Message(Incoming {
                connection: self.connection,
                since: Some(now),
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
        if self.is_dialed {
            self.answer_request();
        }
        let bytes = self.outbox.bytes();
        let messages = self.outbox.advance(bytes);
        let Peer {
            sent, sent_bytes, ..
        } = &*self.peer;
        sent.set(sent.get() + messages as u64);
        sent_bytes.set(sent_bytes.get() + bytes);
        messages
    }

    fn outgoing(&self) -> Outgoing {
        let now = self.outbox.messages();
        Outgoing { now, most: now }
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
