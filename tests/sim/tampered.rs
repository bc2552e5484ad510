//! The engine of all simulated shards: the library's, and, where a test wants it, a bug on top.

use std::{cell::RefCell, os::fd::BorrowedFd, rc::Rc};

use corelane::{
    config::Endpoint,
    engine::{ConnectionId, Engine, Event, Outgoing, sim::Sim},
    error::EngineError,
    wire::Outbox,
};
use quanta::Instant;

/// What is wrong in a world: nothing, as a rule.
#[derive(Default)]
pub(crate) struct Plant {
    /// Why connections were lost.
    lost: RefCell<Vec<String>>,
}

impl Plant {
    /// Why connections were lost, since the last time.
    pub(crate) fn take_lost(&self) -> Vec<String> {
        self.lost.take()
    }
}

pub(crate) struct Tampered {
    inner: Sim,
    plant: Rc<Plant>,
}

impl Tampered {
    pub(crate) fn new(inner: Sim, plant: Rc<Plant>) -> Self {
        Self { inner, plant }
    }

    /// Its number on the network.
    pub(crate) fn node(&self) -> usize {
        self.inner.node()
    }
}

impl Engine for Tampered {
    fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, EngineError> {
        self.inner.listen(at)
    }

    fn stop_listening(&mut self) {
        self.inner.stop_listening();
    }

    fn connect(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        self.inner.connect(to)
    }

    fn close(&mut self, connection: ConnectionId) {
        self.inner.close(connection);
    }

    fn redial(&mut self, connection: ConnectionId) {
        self.inner.redial(connection);
    }

    fn outbox(&mut self, connection: ConnectionId) -> Option<&mut Outbox> {
        self.inner.outbox(connection)
    }

    fn look(&self, connection: ConnectionId) -> Option<&Outbox> {
        self.inner.look(connection)
    }

    fn poll(
        &mut self,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        let Self { inner, plant } = self;
        inner.poll(now, messages_max, &mut |event| {
            if let Event::Down { why, .. } = &event {
                plant.lost.borrow_mut().push(format!("Lost({why:?})"));
            }
            sink(event);
        })
    }

    fn flush(&mut self, now: Instant) -> usize {
        self.inner.flush(now)
    }

    fn outgoing(&self) -> Outgoing {
        self.inner.outgoing()
    }

    fn is_flushed(&self) -> bool {
        self.inner.is_flushed()
    }

    fn next_wake(&self) -> Option<Instant> {
        self.inner.next_wake()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }

    fn may_park(&mut self) -> bool {
        self.inner.may_park()
    }
}
