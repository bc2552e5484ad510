//! What really went over the network: each message leaves once and arrives at most once, and each
//! answer goes back by the connection that its message came by.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use corelane::{
    engine::sim::{Carried, Network},
    wire::{HandlerKey, Header, Kind},
};

use crate::handlers::Order;

/// Shared with the network's watch.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Rc<RefCell<Entries>>);

#[derive(Default)]
struct Entries {
    /// By the order's id.
    passages: HashMap<u32, Passage>,
    /// The order that a correlation stands for, by the connection and who sent it.
    calls: HashMap<(usize, usize, u64), u32>,
    /// Messages that were handed to each engine, by the handler that they name.
    arrived: HashMap<(usize, HandlerKey), u64>,
    /// Engines that answer as they like.
    strangers: Vec<usize>,
    /// Rounds of all shards that have ended.
    rounds: u64,
}

/// One message's way.
#[derive(Clone, Copy, Debug)]
struct Passage {
    kind: Kind,
    cable: usize,
    /// The engine that it was for.
    to: usize,
    has_arrived: bool,
    /// Answers to it that have left, and that have arrived.
    answers: [u32; 2],
    /// In which round the answer arrived.
    answered_in: u64,
}

impl Ledger {
    pub(crate) fn of(network: &Network) -> Self {
        let ledger = Self::default();
        let watching = ledger.clone();
        network.watch(move |carried| watching.0.borrow_mut().enter(&carried));
        ledger
    }

    /// This engine belongs to nobody who keeps the rules.
    pub(crate) fn add_stranger(&self, node: usize) {
        self.0.borrow_mut().strangers.push(node);
    }

    /// The engine that a message was handed to, if it was.
    pub(crate) fn arrived_at(&self, order: u32) -> Option<usize> {
        let entries = self.0.borrow();
        let passage = entries.passages.get(&order)?;
        passage.has_arrived.then_some(passage.to)
    }

    /// The connection that a message has left by, if it has.
    pub(crate) fn cable_of(&self, order: u32) -> Option<usize> {
        let entries = self.0.borrow();
        Some(entries.passages.get(&order)?.cable)
    }

    /// Whether a message has left its process.
    pub(crate) fn has_left(&self, order: u32) -> bool {
        self.0.borrow().passages.contains_key(&order)
    }

    /// Whether an answer to a message has come back, by the connection that it had left by.
    pub(crate) fn is_answered(&self, order: u32) -> bool {
        let entries = self.0.borrow();
        let passage = entries.passages.get(&order);
        passage.is_some_and(|passage| passage.answers[1] > 0)
    }

    /// All shards have had their turn. Returns the number of the round that has ended.
    pub(crate) fn end_round(&self) -> u64 {
        let mut entries = self.0.borrow_mut();
        entries.rounds += 1;
        entries.rounds - 1
    }

    /// In which round the answer to a message arrived, if it did.
    pub(crate) fn answered_in(&self, order: u32) -> Option<u64> {
        let entries = self.0.borrow();
        let passage = entries.passages.get(&order)?;
        (passage.answers[1] > 0).then_some(passage.answered_in)
    }

    /// How many messages were handed to an engine, to be handled.
    pub(crate) fn count_arrived(&self, node: usize) -> u64 {
        let entries = self.0.borrow();
        let arrived = entries.arrived.iter().filter(|((to, _), _)| *to == node);
        arrived.map(|(_, count)| count).sum()
    }

    /// Those of them that name this handler.
    pub(crate) fn count_arrived_for(&self, node: usize, handler: &str) -> u64 {
        let key = (node, HandlerKey::of(handler));
        self.0.borrow().arrived.get(&key).copied().unwrap_or(0)
    }
}

impl Entries {
    fn enter(&mut self, carried: &Carried<'_>) {
        let header = Header::decode(carried.header).expect("shards write headers");
        match header.kind {
            Kind::OneWay | Kind::Confirm | Kind::Request => self.message(carried, &header),
            Kind::Ack | Kind::Response | Kind::Nack if self.strangers.contains(&carried.from) => {
                self.strangers_answer(carried, &header);
            }
            Kind::Ack | Kind::Response | Kind::Nack => self.answer(carried, header.correlation),
            Kind::Hello | Kind::Welcome | Kind::Goodbye | Kind::Cancel => {}
        }
    }

    fn message(&mut self, carried: &Carried<'_>, header: &Header) {
        let id = Order::decode(carried.payload).id;
        if crate::is_replay() {
            let what = if carried.has_arrived {
                "arrives"
            } else {
                "leaves"
            };
            println!(
                "  {id} {what}, {} {}>{}",
                carried.cable, carried.from, carried.to
            );
        }
        let &Carried {
            cable, from, to, ..
        } = carried;
        if !carried.has_arrived {
            let passage = Passage {
                kind: header.kind,
                cable,
                to,
                has_arrived: false,
                answers: [0; 2],
                answered_in: 0,
            };
            let before = self.passages.insert(id, passage);
            assert!(before.is_none(), "message {id} was sent twice");
            if header.kind != Kind::OneWay {
                let call = (cable, from, header.correlation);
                let before = self.calls.insert(call, id);
                assert_eq!(before, None, "one correlation, and two calls: {call:?}");
            }
            return;
        }
        let passage = self.passages.get_mut(&id).expect("what arrives has left");
        assert!(!passage.has_arrived, "message {id} arrived twice");
        assert_eq!(passage.cable, cable, "message {id} changed its connection");
        passage.has_arrived = true;
        *self.arrived.entry((to, header.handler)).or_default() += 1;
    }

    /// Only the first counts that fits.
    fn strangers_answer(&mut self, carried: &Carried<'_>, header: &Header) {
        let call = (carried.cable, carried.to, header.correlation);
        let passage = self
            .calls
            .get(&call)
            .and_then(|id| self.passages.get_mut(id));
        let fits = |kind| match header.kind {
            Kind::Ack => kind == Kind::Confirm,
            Kind::Response => kind == Kind::Request,
            _ => true,
        };
        if let Some(passage) = passage
            && fits(passage.kind)
            && carried.has_arrived
            && passage.answers[1] == 0
        {
            passage.answers[1] = 1;
            passage.answered_in = self.rounds;
        }
    }

    fn answer(&mut self, carried: &Carried<'_>, correlation: u64) {
        let call = (carried.cable, carried.to, correlation);
        let id = self.calls.get(&call);
        let id = id.unwrap_or_else(|| panic!("an answer to no call: {call:?}"));
        let passage = self.passages.get_mut(id).expect("each call has one");
        assert!(passage.has_arrived, "an answer to what never arrived: {id}");
        let answers = &mut passage.answers[usize::from(carried.has_arrived)];
        *answers += 1;
        assert_eq!(*answers, 1, "message {id} was answered twice");
        if carried.has_arrived {
            passage.answered_in = self.rounds;
        }
    }
}
