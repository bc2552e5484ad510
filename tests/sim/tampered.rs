//! The engine of all simulated shards: the library's, and, where a test wants it, a bug on top.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    os::fd::BorrowedFd,
    rc::Rc,
    sync::Arc,
};

use corelane::{
    config::Endpoint,
    engine::{ConnectionId, Engine, Event, Incoming, Outgoing, sim::Sim},
    error::EngineError,
    peers::PeerShared,
    wire::{Header, Kind, Outbox, Reason, Received},
};
use quanta::Instant;

/// A class of bugs, of which a world has one, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// An answer that has arrived goes nowhere.
    LostAnswer,
    /// A message is handed over twice.
    DoubleRun,
    /// A message is handed over behind the next one of its connection.
    SwappedOrder,
    /// Credit is taken, and never given back.
    LeakedCredit,
    /// A message is handed over on another connection than it came by, made later.
    StaleEpoch,
}

/// What is wrong in a world: nothing, as a rule.
#[derive(Default)]
pub(crate) struct Plant {
    /// The bug, and which of its opportunities it waits for. `None` once it has struck.
    bug: Cell<Option<(Bug, usize)>>,
    /// What it has kept back.
    kept: RefCell<Option<Kept>>,
    /// What callers share with their peers' shards.
    shared: RefCell<Vec<Arc<PeerShared>>>,
    /// The connections that were made, by their number.
    made: RefCell<HashMap<Place, u64>>,
    /// The correlation of what arrives as no message at all.
    garbled: Cell<Option<u64>>,
    /// The correlation of what is not taken in, and why.
    declined: Cell<Option<(u64, Reason)>>,
    /// How many connections cannot be begun.
    refusals: Cell<usize>,
    /// Why connections were lost.
    lost: RefCell<Vec<String>>,
    /// The most messages that have waited in an outbox.
    outbox_most: Cell<usize>,
}

/// Where a connection ends, and which one it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    endpoint: String,
    connection: ConnectionId,
}

/// A message to be handed over later.
struct Kept {
    bug: Bug,
    place: Place,
    /// How many connections had been made by then.
    made: u64,
    header: Vec<u8>,
    payload: Vec<u8>,
}

impl Plant {
    /// One that strikes at the opportunity of this number.
    pub(crate) fn new(bug: Bug, opportunity: usize) -> Self {
        Self {
            bug: Cell::new(Some((bug, opportunity))),
            ..Self::default()
        }
    }

    /// What has this correlation arrives with more frames than a message may have.
    pub(crate) fn garble(&self, correlation: u64) {
        self.garbled.set(Some(correlation));
    }

    /// The payload of what has this correlation is not taken in.
    pub(crate) fn decline(&self, correlation: u64, reason: Reason) {
        self.declined.set(Some((correlation, reason)));
    }

    /// The next connections, so many, cannot be begun: there is no socket to be had.
    pub(crate) fn refuse_connections(&self, count: usize) {
        self.refusals.set(count);
    }

    fn is_garbled(&self, header: &[u8]) -> bool {
        self.garbled.get().is_some_and(|it| is_of(header, it))
    }

    /// Why this is not taken in, if it is not.
    fn why_declined(&self, header: &[u8]) -> Option<Reason> {
        let declined = self.declined.get();
        declined.and_then(|(correlation, why)| is_of(header, correlation).then_some(why))
    }

    pub(crate) fn outbox_most(&self) -> usize {
        self.outbox_most.get()
    }

    /// Why connections were lost, since the last time.
    pub(crate) fn take_lost(&self) -> Vec<String> {
        self.lost.take()
    }

    /// A peer's connection is asked for.
    pub(crate) fn share(&self, shared: Arc<PeerShared>) {
        self.shared.borrow_mut().push(shared);
    }

    /// Whether this is the opportunity that the bug has waited for.
    fn strikes(&self, is_opportunity: impl Fn(Bug) -> bool) -> Option<Bug> {
        let (bug, opportunity) = self.bug.get()?;
        if !is_opportunity(bug) {
            return None;
        }
        let left = opportunity.checked_sub(1).map(|left| (bug, left));
        self.bug.set(left);
        left.is_none().then_some(bug)
    }

    /// Takes what was kept back if it goes out at this moment.
    fn take_kept(&self, is_its: impl Fn(&Kept) -> bool) -> Option<Kept> {
        self.kept.borrow_mut().take_if(|kept| is_its(kept))
    }

    fn leak_credit(&self) {
        let shared = self.shared.borrow();
        let leaked = shared.iter().find(|it| it.credit.try_take(1));
        assert!(leaked.is_some(), "no peer has credit to leak");
    }

    fn hand_over(&self, endpoint: &str, event: Event<'_>, sink: &mut impl FnMut(Event<'_>)) {
        if let Event::Message(incoming) = &event
            && self.is_garbled(incoming.message.header())
        {
            let connection = incoming.connection;
            let frames = 1_000;
            return sink(Event::Malformed { connection, frames });
        }
        let event = match event {
            Event::Message(incoming) => match self.why_declined(incoming.message.header()) {
                Some(reason) => {
                    return sink(Event::Declined {
                        connection: incoming.connection,
                        header: incoming.message.header(),
                        reason,
                        outbox: incoming.outbox,
                    });
                }
                None => Event::Message(incoming),
            },
            event => event,
        };
        if self.bug.get().is_none() && self.kept.borrow().is_none() {
            if let Event::Down { why, .. } = &event {
                self.lost.borrow_mut().push(format!("Lost({why:?})"));
            }
            return sink(event);
        }
        let place = |connection| Place {
            endpoint: endpoint.to_owned(),
            connection,
        };
        match event {
            Event::Up(connection) => {
                let mut made = self.made.borrow_mut();
                let number = made.len() as u64 + 1;
                made.insert(place(connection), number);
                drop(made);
                sink(event);
            }
            Event::Message(incoming) => {
                let place = place(incoming.connection);
                self.hand_message(place, incoming, sink);
            }
            event => sink(event),
        }
    }

    fn hand_message(&self, place: Place, incoming: Incoming<'_>, sink: &mut impl FnMut(Event<'_>)) {
        let Incoming {
            connection,
            since,
            mut message,
            outbox,
        } = incoming;
        let header = message.header().to_vec();
        let kind = Header::decode(&header).expect("shards write headers").kind;
        let is_call = matches!(kind, Kind::OneWay | Kind::Confirm | Kind::Request);
        let is_answer = matches!(kind, Kind::Ack | Kind::Response | Kind::Nack);
        let mut payload = message.payload().to_vec();
        let mut hand = |header: &[u8], payload: &mut Vec<u8>| {
            sink(Event::Message(Incoming {
                connection,
                since,
                message: Received::apart(header, payload),
                outbox: &mut *outbox,
            }));
        };
        // What was kept back for another connection goes before, for this one behind.
        let mut kept = self.take_kept(|kept| match kept.bug {
            Bug::StaleEpoch => {
                let made = self.made.borrow().get(&place).copied();
                is_call && kept.place.endpoint == place.endpoint && made > Some(kept.made)
            }
            _ => is_call && kept.place == place,
        });
        if let Some(kept) = kept.take_if(|kept| kept.bug == Bug::StaleEpoch) {
            hand(&kept.header, &mut kept.payload.clone());
        }
        let bug = self.strikes(|bug| match bug {
            Bug::LostAnswer => is_answer,
            _ => is_call,
        });
        match bug {
            Some(Bug::LostAnswer) => {}
            Some(bug @ (Bug::SwappedOrder | Bug::StaleEpoch)) => {
                *self.kept.borrow_mut() = Some(Kept {
                    bug,
                    place,
                    made: self.made.borrow().len() as u64,
                    header,
                    payload,
                });
            }
            Some(Bug::DoubleRun) => {
                hand(&header, &mut payload.clone());
                hand(&header, &mut payload);
            }
            Some(Bug::LeakedCredit) => {
                self.leak_credit();
                hand(&header, &mut payload);
            }
            None => hand(&header, &mut payload),
        }
        if let Some(mut kept) = kept {
            hand(&kept.header, &mut kept.payload);
        }
    }
}

fn is_of(header: &[u8], correlation: u64) -> bool {
    Header::decode(header).is_ok_and(|its| its.correlation == correlation)
}

pub(crate) struct Tampered {
    inner: Sim,
    /// Where it listens.
    endpoint: String,
    /// As many messages may be put into an outbox.
    messages_max: usize,
    /// So many answers may come at most from elsewhere, for all connections together.
    owed_max: usize,
    plant: Rc<Plant>,
}

impl Tampered {
    pub(crate) fn new(inner: Sim, messages_max: usize, owed_max: usize, plant: Rc<Plant>) -> Self {
        let endpoint = String::new();
        Self {
            inner,
            endpoint,
            messages_max,
            owed_max,
            plant,
        }
    }

    /// Its number on the network.
    pub(crate) fn node(&self) -> usize {
        self.inner.node()
    }
}

impl Engine for Tampered {
    fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, EngineError> {
        let bound = self.inner.listen(at)?;
        self.endpoint = bound.to_string();
        Ok(bound)
    }

    fn stop_listening(&mut self) {
        self.inner.stop_listening();
    }

    fn connect(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        let refusals = &self.plant.refusals;
        if let Some(left) = refusals.get().checked_sub(1) {
            refusals.set(left);
            return Err(EngineError::Connect {
                endpoint: to.to_string(),
                why: "as asked".to_owned(),
            });
        }
        self.inner.connect(to)
    }

    fn connect_once(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        self.inner.connect_once(to)
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
        let Self {
            inner,
            endpoint,
            plant,
            ..
        } = self;
        inner.poll(now, messages_max, &mut |event| {
            plant.hand_over(endpoint, event, sink);
        })
    }

    fn flush(&mut self, now: Instant) -> usize {
        let (messages_max, owed_max) = (self.messages_max, self.owed_max);
        // Each answer was promised a place while there was one, or, where messages are read whether
        // or not there is one, while the shard could take on another message.
        let [paused, always_read] = [false, true].map(|it| self.inner.outbox_most(it));
        assert!(paused <= 2 * messages_max, "{paused} messages in an outbox");
        let most = messages_max + owed_max;
        assert!(always_read <= most, "{always_read} messages in an outbox");
        let before = self.plant.outbox_most.get();
        self.plant
            .outbox_most
            .set(before.max(paused).max(always_read));
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
