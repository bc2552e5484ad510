//! What lies between the engines: cables, each with a lane in either direction.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use quanta::Instant;

use super::{Carried, Weather};

type Watch = dyn FnMut(Carried<'_>);

pub(super) struct Cables {
    pub(super) random: fastrand::Rng,
    pub(super) weather: Weather,
    pub(super) nodes: Vec<Node>,
    pub(super) ports: u16,
    pub(super) listeners: BTreeMap<String, usize>,
    /// By a number that no other cable ever has.
    cables: Vec<Option<Cable>>,
    pub(super) watch: Option<Box<Watch>>,
}

/// An engine, as the others see it.
#[derive(Default)]
pub(super) struct Node {
    /// Cables that were dialed to it and that it has not accepted.
    pub(super) incoming: Vec<usize>,
    /// Since when its shard takes no turns.
    pub(super) paused_since: Option<Instant>,
    /// When it wakes by itself, once that was found out and as long as nothing changes it.
    pub(super) wake: Option<Option<Instant>>,
}

/// A connection as it lies between two engines. End 0 dialed, end 1 accepted.
pub(super) struct Cable {
    pub(super) nodes: [usize; 2],
    /// What each end sends.
    pub(super) lanes: [Lane; 2],
    /// Ends that have not let go.
    attached: [bool; 2],
}

#[derive(Default)]
pub(super) struct Lane {
    items: VecDeque<Item>,
    /// From when until when nothing gets through. It is sent again afterwards, as TCP does.
    pub(super) hole: Option<Hole>,
    /// Whatever is written from now on is lost.
    is_ended: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Hole {
    pub(super) since: Instant,
    pub(super) until: Instant,
}

pub(super) struct Item {
    /// `None`: at once.
    due: Option<Instant>,
    pub(super) what: What,
}

pub(super) enum What {
    /// The handshake's part of this end.
    Open,
    Message {
        header: Vec<u8>,
        payload: Vec<u8>,
    },
    /// Nothing more comes.
    Close,
}

impl Item {
    pub(super) fn is_message(&self) -> bool {
        matches!(self.what, What::Message { .. })
    }
}

impl Lane {
    fn readable_at(&self, item: &Item) -> Option<Instant> {
        match self.hole {
            Some(hole) if item.due.is_none_or(|due| due > hole.since) => {
                item.due.max(Some(hole.until))
            }
            _ => item.due,
        }
    }

    /// The next item and when it can be read: `None` at once.
    pub(super) fn front(&self) -> Option<(&Item, Option<Instant>)> {
        let item = self.items.front()?;
        Some((item, self.readable_at(item)))
    }

    /// The next item, if it has arrived by now, and since when it could be read.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Item, Option<Instant>)> {
        let (_, at) = self.front()?;
        let item = match at.is_none_or(|at| at <= now) {
            true => self.items.pop_front()?,
            false => return None,
        };
        Some((item, at))
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// In order: none overtakes the one before.
    fn push(&mut self, due: Option<Instant>, what: What) {
        if !self.is_ended {
            let last = self.items.back().and_then(|last| last.due);
            let due = due.max(last);
            self.items.push_back(Item { due, what });
        }
    }

    /// The first so many messages still arrive, then the end.
    fn end(&mut self, messages_left: usize) {
        if self.is_ended {
            return;
        }
        self.items.truncate(messages_left);
        self.push(None, What::Close);
        self.is_ended = true;
    }
}

impl Cables {
    pub(super) fn new(seed: u64, weather: Weather) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            weather,
            nodes: Vec::new(),
            ports: 0,
            listeners: BTreeMap::new(),
            cables: Vec::new(),
            watch: None,
        }
    }

    #[inline]
    pub(super) fn get(&self, cable: usize) -> Option<&Cable> {
        self.cables.get(cable)?.as_ref()
    }

    /// For whoever may change when something arrives.
    #[inline]
    pub(super) fn get_mut(&mut self, cable: usize) -> Option<&mut Cable> {
        let cable = self.cables.get_mut(cable)?.as_mut()?;
        for node in cable.nodes {
            self.nodes[node].wake = None;
        }
        Some(cable)
    }

    /// For whoever takes what has arrived for itself.
    #[inline]
    pub(super) fn reading(&mut self, cable: usize) -> Option<&mut Cable> {
        self.cables.get_mut(cable)?.as_mut()
    }

    /// The numbers of those that lie between two ends, neither of which has let go.
    pub(super) fn whole(&self) -> Vec<usize> {
        let is_whole = |cable: &Cable| {
            cable.attached == [true; 2] && !cable.lanes.iter().any(|lane| lane.is_ended)
        };
        let numbers = 0..self.cables.len();
        numbers
            .filter(|&number| self.get(number).is_some_and(is_whole))
            .collect()
    }

    pub(super) fn connect(&mut self, now: Instant, nodes: [usize; 2]) -> usize {
        let number = self.cables.len();
        self.cables.push(Some(Cable {
            nodes,
            lanes: Default::default(),
            attached: [true; 2],
        }));
        self.nodes[nodes[1]].incoming.push(number);
        self.open(now, number, 0);
        number
    }

    /// Sends this end's part of the handshake.
    pub(super) fn open(&mut self, now: Instant, cable: usize, end: usize) {
        let due = now + self.delay();
        if let Some(cable) = self.get_mut(cable) {
            cable.lanes[end].push(Some(due), What::Open);
        }
    }

    /// Takes a message, or says that there is no room for it.
    pub(super) fn send(
        &mut self,
        now: Instant,
        (number, end): (usize, usize),
        header: &[u8],
        payload: &[u8],
    ) -> bool {
        let due = now + self.delay();
        let in_flight_max = self.weather.in_flight_max;
        let Some(cable) = self.get_mut(number) else {
            return false;
        };
        let lane = &mut cable.lanes[end];
        if lane.len() >= in_flight_max {
            return false;
        }
        let message = What::Message {
            header: header.to_vec(),
            payload: payload.to_vec(),
        };
        lane.push(Some(due), message);
        self.tell((number, end), false, header, payload);
        true
    }

    /// Tells the watch of a message that has left, or has arrived, from this end.
    pub(super) fn tell(
        &mut self,
        (number, end): (usize, usize),
        has_arrived: bool,
        header: &[u8],
        payload: &[u8],
    ) {
        let Some(cable) = self.cables[number].as_ref() else {
            return;
        };
        let (from, to) = (cable.nodes[end], cable.nodes[1 - end]);
        if let Some(watch) = &mut self.watch {
            watch(Carried {
                cable: number,
                from,
                to,
                has_arrived,
                header,
                payload,
            });
        }
    }

    /// One end lets go. The other one reads what is under way, or nothing of it, and then the end.
    pub(super) fn let_go(&mut self, number: usize, end: usize) {
        let is_reset = self.random.bool();
        let Some(cable) = self.get_mut(number) else {
            return;
        };
        let left = if is_reset { 0 } else { cable.lanes[end].len() };
        cable.lanes[end].end(left);
        // Nobody reads it.
        cable.lanes[1 - end].is_ended = true;
        cable.attached[end] = false;
        if cable.attached == [false; 2] {
            self.cables[number] = None;
        }
    }

    /// Cut somewhere between its ends: of what is under way some arrives.
    pub(super) fn cut(&mut self, number: usize) {
        let mut random = self.random.fork();
        if let Some(cable) = self.get_mut(number) {
            for lane in &mut cable.lanes {
                lane.end(random.usize(..=lane.len()));
            }
        }
    }

    /// Something has changed for all.
    pub(super) fn forget_wakes(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.wake = None);
    }

    /// Since when this end of a cable has heard nothing of the other.
    pub(super) fn silent_since(&self, now: Instant, cable: &Cable, end: usize) -> Option<Instant> {
        let other = 1 - end;
        let hole = cable.lanes[other].hole.filter(|hole| now < hole.until);
        let paused = self.nodes[cable.nodes[other]].paused_since;
        let both = [hole.map(|hole| hole.since), paused];
        both.into_iter().flatten().min()
    }

    fn delay(&mut self) -> Duration {
        let Weather {
            delay_min,
            delay_max,
            ..
        } = self.weather;
        let spread = delay_max.saturating_sub(delay_min);
        delay_min + spread.mul_f64(self.random.f64())
    }
}
