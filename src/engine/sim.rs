//! A network in memory, seeded, for tests that run whole shards under a virtual clock.
//!
//! All engines of one [`Network`] live in one thread. A message arrives after a random delay, in
//! order per connection; a connection that is lost loses what is under way, and is made again by
//! whoever dialed it. As with TCP, nothing is lost in the middle of a connection that lives.
//! Heartbeats are not sent, but an engine notices when it would have heard none. The same seed and
//! the same calls give the same run.

mod cables;
mod faults;
mod link;

use std::{cell::RefCell, os::fd::BorrowedFd, rc::Rc, time::Duration};

use quanta::Instant;

pub use self::faults::Carried;
use self::{
    cables::{Cables, Node, What},
    link::Link,
};
use super::{ConnectionId, Engine, EngineOptions, Event, Incoming, Outgoing, Slots};
use crate::{
    config::Endpoint,
    error::{EngineError, Lost},
    wire::{Outbox, Received},
};

/// What a network does to its messages.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Shortest time from one end to the other.
    pub delay_min: Duration,
    /// Longest time from one end to the other.
    pub delay_max: Duration,
    /// Messages under way in one direction of one connection; beyond them the sender's outbox
    /// fills.
    pub in_flight_max: usize,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            delay_min: Duration::from_micros(5),
            delay_max: Duration::from_micros(50),
            in_flight_max: 64,
        }
    }
}

/// Connects the [`Sim`] engines that it made.
#[derive(Clone)]
pub struct Network(Rc<RefCell<Cables>>);

/// One shard's engine on a [`Network`].
pub struct Sim {
    node: usize,
    network: Network,
    options: EngineOptions,
    links: Slots<Link>,
    /// The most messages that stood in one outbox.
    outgoing_most: usize,
    /// Kept for its memory.
    ids: Vec<ConnectionId>,
    /// When it was last polled.
    now: Option<Instant>,
}

/// What came of a look at a connection.
enum Read {
    Nothing,
    Opened,
    Message {
        since: Option<Instant>,
        header: Vec<u8>,
        payload: Vec<u8>,
    },
    Lost(Lost),
}

impl Network {
    /// A network whose delays come from this seed.
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self(Rc::new(RefCell::new(Cables::new(seed, weather))))
    }

    /// An engine on this network.
    pub fn engine(&self, options: EngineOptions) -> Sim {
        let mut cables = self.0.borrow_mut();
        cables.nodes.push(Node::default());
        Sim {
            node: cables.nodes.len() - 1,
            network: self.clone(),
            options,
            links: Slots::new(),
            outgoing_most: 0,
            ids: Vec::new(),
            now: None,
        }
    }
}

impl Sim {
    fn new_link(&self, dials: Option<Endpoint>, cable: Option<(usize, usize)>) -> Link {
        let options = &self.options;
        Link {
            dials,
            is_once: false,
            retry_at: None,
            cable,
            is_up: false,
            full_since: None,
            outbox: Outbox::new(options.outgoing_messages_max, options.outgoing_bytes_max),
        }
    }

    /// When it wakes next is to be found out anew.
    fn forget_wake(&self) {
        self.network.0.borrow_mut().nodes[self.node].wake = None;
    }

    /// Dials, if there is somebody. False if that was the last time.
    fn dial(&mut self, id: ConnectionId, now: Instant) -> bool {
        let Some(link) = self.links.get_mut(id) else {
            return true;
        };
        let (None, Some(endpoint)) = (link.cable, &link.dials) else {
            return true;
        };
        if link.retry_at.is_some_and(|at| now < at) {
            return true;
        }
        let mut cables = self.network.0.borrow_mut();
        match cables.listeners.get(&endpoint.to_string()).copied() {
            Some(listener) => {
                let cable = cables.connect(now, [self.node, listener]);
                link.cable = Some((cable, 0));
                link.retry_at = Some(now + self.options.handshake);
            }
            None if link.is_once => return false,
            None => link.retry_at = Some(now + self.options.reconnect_min),
        }
        true
    }

    /// Accepts the cables whose handshakes have arrived.
    fn accept(&mut self, now: Instant) {
        let network = self.network.clone();
        let mut cables = network.0.borrow_mut();
        if cables.nodes[self.node].incoming.is_empty() {
            return;
        }
        let mut incoming = std::mem::take(&mut cables.nodes[self.node].incoming);
        let listens = cables.listeners.values().any(|&node| node == self.node);
        incoming.retain(|&number| {
            let lane = cables.get(number).map(|cable| &cable.lanes[0]);
            let Some((_, at)) = lane.and_then(|lane| lane.front()) else {
                return false;
            };
            if at.is_some_and(|at| now < at) {
                return true;
            }
            if listens {
                self.links.insert(self.new_link(None, Some((number, 1))));
                cables.open(now, number, 1);
            } else {
                cables.let_go(number, 1);
            }
            false
        });
        cables.nodes[self.node].incoming = incoming;
    }

    /// The next thing that has arrived on a connection, or its end.
    fn read(&mut self, id: ConnectionId, now: Instant, takes_messages: bool) -> Read {
        let Some(link) = self.links.get_mut(id) else {
            return Read::Nothing;
        };
        let Some((number, end)) = link.cable else {
            return Read::Nothing;
        };
        let cables = &mut *self.network.0.borrow_mut();
        let Some(cable) = cables.reading(number) else {
            return Read::Lost(Lost::Closed);
        };
        let lane = &mut cable.lanes[1 - end];
        let is_read = lane
            .front()
            .is_none_or(|(next, _)| takes_messages || !next.is_message());
        let item = is_read.then(|| lane.pop(now)).flatten();
        match item.map(|(item, since)| (item.what, since)) {
            Some((What::Open, _)) => return Read::Opened,
            Some((What::Message { header, payload }, since)) => {
                cables.tell((number, 1 - end), true, &header, &payload);
                return Read::Message {
                    since,
                    header,
                    payload,
                };
            }
            Some((What::Close, _)) => return Read::Lost(Lost::Closed),
            None => {}
        }
        let cable = cables.get(number).expect("was just found");
        let due = link.due(cables.silent_since(now, cable, end), &self.options);
        match due {
            Some((at, why)) if at <= now => Read::Lost(why),
            _ => Read::Nothing,
        }
    }

    fn lose(
        &mut self,
        connection: ConnectionId,
        why: Lost,
        now: Instant,
        sink: &mut impl FnMut(Event<'_>),
    ) {
        let Some(link) = self.links.get_mut(connection) else {
            return;
        };
        if let Some((cable, end)) = link.cable.take() {
            self.network.0.borrow_mut().let_go(cable, end);
        }
        link.retry_at = Some(now + self.options.reconnect_min);
        link.full_since = None;
        if std::mem::take(&mut link.is_up) || link.is_once {
            sink(Event::Down {
                connection,
                why,
                outbox: &mut link.outbox,
            });
        }
        link.outbox.clear();
        if link.dials.is_none() || link.is_once {
            self.links.remove(connection);
        }
    }

    /// What one connection brings. Returns how much that was.
    fn poll_one(
        &mut self,
        connection: ConnectionId,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        if !self.dial(connection, now) {
            let why = Lost::Broken("nobody listens".to_owned());
            self.lose(connection, why, now, sink);
            return 1;
        }
        let mut count = 0;
        loop {
            let link = self.links.get(connection);
            let is_congested = link.is_some_and(Link::is_congested);
            match self.read(connection, now, !is_congested && count < messages_max) {
                Read::Nothing => return count,
                Read::Opened => {
                    let link = self.links.get_mut(connection).expect("was just read");
                    (link.is_up, link.retry_at) = (true, None);
                    sink(Event::Up(connection));
                }
                Read::Message {
                    since,
                    header,
                    mut payload,
                } => {
                    let link = self.links.get_mut(connection).expect("was just read");
                    sink(Event::Message(Incoming {
                        connection,
                        since,
                        message: Received::apart(&header, &mut payload),
                        outbox: &mut link.outbox,
                    }));
                }
                Read::Lost(why) => {
                    self.lose(connection, why, now, sink);
                    return count + 1;
                }
            }
            count += 1;
        }
    }
}

/// As when a process dies: its peers lose their connections.
impl Drop for Sim {
    fn drop(&mut self) {
        self.stop_listening();
        let cables = &mut *self.network.0.borrow_mut();
        for number in std::mem::take(&mut cables.nodes[self.node].incoming) {
            cables.let_go(number, 1);
        }
        for (_, link) in self.links.iter() {
            if let Some((cable, end)) = link.cable {
                cables.let_go(cable, end);
            }
        }
    }
}

impl Engine for Sim {
    fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, EngineError> {
        let mut cables = self.network.0.borrow_mut();
        let mut bound = at.to_string();
        if let Some(host) = bound
            .strip_prefix("tcp://")
            .and_then(|at| at.strip_suffix(":0"))
        {
            cables.ports += 1;
            bound = format!("tcp://{host}:{}", cables.ports);
        }
        if cables.listeners.contains_key(&bound) {
            return Err(EngineError::InUse { endpoint: bound });
        }
        cables.listeners.insert(bound.clone(), self.node);
        bound.parse().map_err(|error| EngineError::Listen {
            endpoint: at.to_string(),
            why: format!("{error}"),
        })
    }

    fn stop_listening(&mut self) {
        let mut cables = self.network.0.borrow_mut();
        cables
            .listeners
            .retain(|_, listener| *listener != self.node);
    }

    fn connect(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        self.forget_wake();
        let link = self.new_link(Some(to.clone()), None);
        Ok(self.links.insert(link))
    }

    fn connect_once(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        self.forget_wake();
        let link = self.new_link(Some(to.clone()), None);
        let is_once = true;
        Ok(self.links.insert(Link { is_once, ..link }))
    }

    fn close(&mut self, connection: ConnectionId) {
        self.forget_wake();
        if let Some(Link {
            cable: Some((cable, end)),
            ..
        }) = self.links.remove(connection)
        {
            self.network.0.borrow_mut().let_go(cable, end);
        }
    }

    fn redial(&mut self, connection: ConnectionId) {
        if let Some(Link {
            cable: Some((cable, _)),
            is_up: true,
            ..
        }) = self.links.get(connection)
        {
            self.network.0.borrow_mut().cut(*cable);
        }
    }

    fn outbox(&mut self, connection: ConnectionId) -> Option<&mut Outbox> {
        let link = self.links.get_mut(connection)?;
        link.is_up.then_some(&mut link.outbox)
    }

    fn look(&self, connection: ConnectionId) -> Option<&Outbox> {
        Some(&self.links.get(connection)?.outbox)
    }

    fn poll(
        &mut self,
        now: Instant,
        messages_max: usize,
        sink: &mut impl FnMut(Event<'_>),
    ) -> usize {
        self.now = Some(now);
        self.forget_wake();
        self.accept(now);
        let mut ids = std::mem::take(&mut self.ids);
        ids.extend(self.links.iter().map(|(id, _)| id));
        let mut count = 0;
        for id in ids.drain(..) {
            count += self.poll_one(id, now, messages_max.saturating_sub(count), sink);
        }
        self.ids = ids;
        count
    }

    fn flush(&mut self, now: Instant) -> usize {
        self.forget_wake();
        let cables = &mut *self.network.0.borrow_mut();
        let mut taken = 0;
        for (_, link) in self.links.iter_mut() {
            let Some(cable) = link.cable.filter(|_| link.is_up) else {
                continue;
            };
            self.outgoing_most = self.outgoing_most.max(link.outbox.messages());
            while let Some(message) = link.outbox.front() {
                if !cables.send(now, cable, message.header, message.payload) {
                    break;
                }
                link.outbox.pop_front();
                taken += 1;
            }
            link.full_since = match link.outbox.is_full() {
                true => link.full_since.or(Some(now)),
                false => None,
            };
        }
        taken
    }

    fn outgoing(&self) -> Outgoing {
        let outboxes = self.links.iter().map(|(_, link)| link.outbox.messages());
        Outgoing {
            now: outboxes.max().unwrap_or(0),
            most: self.outgoing_most,
        }
    }

    fn is_flushed(&self) -> bool {
        self.links.iter().all(|(_, link)| link.outbox.is_empty())
    }

    fn next_wake(&self) -> Option<Instant> {
        let cables = &mut *self.network.0.borrow_mut();
        if let Some(known) = cables.nodes[self.node].wake {
            return known;
        }
        let now = self.now?;
        let links = self.links.iter();
        let wakes = links.filter_map(|(_, link)| link.next_wake(now, cables, &self.options));
        let incoming = cables.nodes[self.node].incoming.iter();
        let arrivals = incoming.filter_map(|&number| {
            let (_, at) = cables.get(number)?.lanes[0].front()?;
            Some(at.unwrap_or(now))
        });
        let wake = wakes.chain(arrivals).min();
        cables.nodes[self.node].wake = Some(wake);
        wake
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn may_park(&mut self) -> bool {
        let cables = self.network.0.borrow();
        !self.links.iter().any(|(_, link)| link.may_flush(&cables))
    }
}
