//! A network in memory, seeded, for tests that run whole shards under a virtual clock.
//!
//! All engines of one [`Network`] live in one thread. A message arrives after a random delay, in
//! order per connection; a cut connection loses what is under way, and connects again by itself.
//! The same seed and the same calls give the same run.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    os::fd::BorrowedFd,
    rc::Rc,
    time::Duration,
};

use quanta::Instant;

use super::{ConnectionId, Engine, EngineOptions, Event, Incoming, Slots};
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
}

struct Cables {
    random: fastrand::Rng,
    weather: Weather,
    nodes: usize,
    ports: u16,
    listeners: BTreeMap<String, usize>,
    /// By a number that no other cable ever has: both ends learn of a cut in their own time.
    cables: BTreeMap<usize, Cable>,
    cables_made: usize,
    /// Connections that a node's next poll is to make or lose.
    changes: Vec<VecDeque<Change>>,
}

/// A connection as it lies between two engines. End 0 dialed, end 1 accepted.
struct Cable {
    nodes: [usize; 2],
    under_way: [VecDeque<Parcel>; 2],
}

struct Parcel {
    due: Instant,
    header: Vec<u8>,
    payload: Vec<u8>,
}

enum Change {
    Accepted { cable: usize },
    Cut { cable: usize },
}

/// A connection as one engine sees it.
struct Link {
    /// Where it is dialed to; `None` for an accepted one.
    dials: Option<Endpoint>,
    retry_at: Option<Instant>,
    /// The cable, and which of its ends is ours.
    cable: Option<(usize, usize)>,
    outbox: Outbox,
}

impl Network {
    /// A network whose delays come from this seed.
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self(Rc::new(RefCell::new(Cables {
            random: fastrand::Rng::with_seed(seed),
            weather,
            nodes: 0,
            ports: 0,
            listeners: BTreeMap::new(),
            cables: BTreeMap::new(),
            cables_made: 0,
            changes: Vec::new(),
        })))
    }

    /// An engine on this network.
    pub fn engine(&self, options: EngineOptions) -> Sim {
        let mut cables = self.0.borrow_mut();
        cables.nodes += 1;
        cables.changes.push(VecDeque::new());
        let node = cables.nodes - 1;
        Sim {
            node,
            network: self.clone(),
            options,
            links: Slots::new(),
        }
    }

    /// Cuts every connection; what is under way is lost. Dialing ends connect again.
    pub fn cut_all(&self) {
        self.0.borrow_mut().cut_where(|_| true);
    }
}

impl Cables {
    /// Both ends learn of it by their next poll.
    fn cut(&mut self, cable: usize) {
        if let Some(lost) = self.cables.remove(&cable) {
            for node in lost.nodes {
                self.changes[node].push_back(Change::Cut { cable });
            }
        }
    }

    fn cut_where(&mut self, is_cut: impl Fn(&Cable) -> bool) {
        let cut = self.cables.iter().filter(|(_, cable)| is_cut(cable));
        let cut: Vec<usize> = cut.map(|(&number, _)| number).collect();
        for cable in cut {
            self.cut(cable);
        }
    }

    fn connect(&mut self, nodes: [usize; 2]) -> usize {
        self.cables_made += 1;
        let under_way = Default::default();
        self.cables
            .insert(self.cables_made, Cable { nodes, under_way });
        self.cables_made
    }

    fn delay(&mut self) -> Duration {
        let spread = self
            .weather
            .delay_max
            .saturating_sub(self.weather.delay_min);
        self.weather.delay_min + spread.mul_f64(self.random.f64())
    }
}

impl Sim {
    fn new_link(&self, dials: Option<Endpoint>, cable: Option<(usize, usize)>) -> Link {
        let options = &self.options;
        Link {
            dials,
            retry_at: None,
            cable,
            outbox: Outbox::new(options.outgoing_messages_max, options.outgoing_bytes_max),
        }
    }

    /// Dials whoever is due, and tells of connections made and lost.
    fn poll_changes(&mut self, now: Instant, sink: &mut impl FnMut(Event<'_>)) -> usize {
        let mut count = 0;
        let ids: Vec<ConnectionId> = self.links.iter().map(|(id, _)| id).collect();
        for id in ids {
            let link = self.links.get_mut(id).expect("is in the list");
            let due = link.cable.is_none() && link.retry_at.is_none_or(|at| at <= now);
            let Some(endpoint) = link.dials.as_ref().filter(|_| due) else {
                continue;
            };
            let cables = &mut *self.network.0.borrow_mut();
            let Some(&listener) = cables.listeners.get(&endpoint.to_string()) else {
                link.retry_at = Some(now + self.options.reconnect_min);
                continue;
            };
            let cable = cables.connect([self.node, listener]);
            cables.changes[listener].push_back(Change::Accepted { cable });
            link.cable = Some((cable, 0));
            sink(Event::Up(id));
            count += 1;
        }
        while let Some(change) = self.next_change() {
            count += 1;
            match change {
                Change::Accepted { cable } => {
                    let link = self.new_link(None, Some((cable, 1)));
                    sink(Event::Up(self.links.insert(link)));
                }
                Change::Cut { cable } => self.lose(cable, now, sink),
            }
        }
        count
    }

    fn next_change(&mut self) -> Option<Change> {
        self.network.0.borrow_mut().changes[self.node].pop_front()
    }

    fn lose(&mut self, cable: usize, now: Instant, sink: &mut impl FnMut(Event<'_>)) {
        let found = self
            .links
            .iter()
            .find(|(_, link)| link.cable.is_some_and(|of| of.0 == cable));
        let Some((connection, _)) = found else { return };
        let link = self.links.get_mut(connection).expect("was just found");
        link.cable = None;
        link.retry_at = Some(now + self.options.reconnect_min);
        sink(Event::Down {
            connection,
            why: Lost::Closed,
            outbox: &mut link.outbox,
        });
        link.outbox.clear();
        if link.dials.is_none() {
            self.links.remove(connection);
        }
    }

    fn next_parcel(&mut self, (cable, end): (usize, usize), now: Instant) -> Option<Parcel> {
        let mut cables = self.network.0.borrow_mut();
        let arriving = &mut cables.cables.get_mut(&cable)?.under_way[1 - end];
        arriving.pop_front_if(|parcel| parcel.due <= now)
    }
}

/// As when a process dies: its peers lose their connections.
impl Drop for Sim {
    fn drop(&mut self) {
        self.stop_listening();
        let node = self.node;
        let mut cables = self.network.0.borrow_mut();
        cables.cut_where(|cable| cable.nodes.contains(&node));
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
        let node = self.node;
        self.network
            .0
            .borrow_mut()
            .listeners
            .retain(|_, listener| *listener != node);
    }

    fn connect(&mut self, to: &Endpoint) -> Result<ConnectionId, EngineError> {
        let link = self.new_link(Some(to.clone()), None);
        Ok(self.links.insert(link))
    }

    fn close(&mut self, connection: ConnectionId) {
        if let Some(Link {
            cable: Some((cable, _)),
            ..
        }) = self.links.remove(connection)
        {
            self.network.0.borrow_mut().cut(cable);
        }
    }

    fn outbox(&mut self, connection: ConnectionId) -> Option<&mut Outbox> {
        let link = self.links.get_mut(connection)?;
        link.cable.is_some().then_some(&mut link.outbox)
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
        let mut count = self.poll_changes(now, sink);
        let ids: Vec<ConnectionId> = self.links.iter().map(|(id, _)| id).collect();
        for connection in ids {
            let Some(cable) = self.links.get(connection).and_then(|link| link.cable) else {
                continue;
            };
            let is_held = |sim: &Self| sim.look(connection).is_some_and(Outbox::is_held);
            while count < messages_max && !is_held(self) {
                let Some(mut parcel) = self.next_parcel(cable, now) else {
                    break;
                };
                let link = self.links.get_mut(connection).expect("is in the list");
                sink(Event::Message(Incoming {
                    connection,
                    message: Received::apart(&parcel.header, &mut parcel.payload),
                    outbox: &mut link.outbox,
                }));
                count += 1;
            }
        }
        count
    }

    fn flush(&mut self, now: Instant) -> usize {
        let cables = &mut *self.network.0.borrow_mut();
        let mut taken = 0;
        for (_, link) in self.links.iter_mut() {
            let Some((cable, end)) = link.cable else {
                continue;
            };
            while let Some(message) = link.outbox.front() {
                let due = now + cables.delay();
                let in_flight_max = cables.weather.in_flight_max;
                let Some(cable) = cables.cables.get_mut(&cable) else {
                    break;
                };
                let leaving = &mut cable.under_way[end];
                if leaving.len() >= in_flight_max {
                    break;
                }
                // In order: none overtakes the one before.
                let due = leaving.back().map_or(due, |last| last.due.max(due));
                let (header, payload) = (message.header.to_vec(), message.payload.to_vec());
                leaving.push_back(Parcel {
                    due,
                    header,
                    payload,
                });
                link.outbox.pop_front();
                taken += 1;
            }
        }
        taken
    }

    fn is_flushed(&self) -> bool {
        self.links.iter().all(|(_, link)| link.outbox.is_empty())
    }

    fn next_wake(&self) -> Option<Instant> {
        let cables = self.network.0.borrow();
        let arrivals = self.links.iter().filter_map(|(_, link)| {
            let (cable, end) = link.cable?;
            Some(cables.cables.get(&cable)?.under_way[1 - end].front()?.due)
        });
        let retries = self.links.iter().filter_map(|(_, link)| match link.cable {
            None => link.retry_at,
            Some(_) => None,
        });
        arrivals.chain(retries).min()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn may_park(&mut self) -> bool {
        let cables = self.network.0.borrow();
        let may_flush = |link: &Link| {
            let (cable, end) = link.cable?;
            let leaving = cables.cables.get(&cable)?.under_way[end].len();
            (!link.outbox.is_empty() && leaving < cables.weather.in_flight_max).then_some(())
        };
        cables.changes[self.node].is_empty()
            && !self.links.iter().any(|(_, link)| may_flush(link).is_some())
    }
}
