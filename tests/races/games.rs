//! The ways between shards, each played by two threads. One begins the rounds; the other ends with
//! it.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
};

use corelane::route::{Doorbell, Inbox, Mesh, Port, inbox, seats};

use crate::side::Side;

/// Starts both threads.
pub(crate) type Game = fn([Side; 2]) -> [JoinHandle<()>; 2];

pub(crate) const GAMES: [(&str, Game); 4] = [
    ("rings", |sides| by_mesh(sides, 64, ask, answer)),
    ("inboxes", by_inbox),
    ("a full ring", |sides| {
        by_mesh(sides, 1, fill, take_and_keep)
    }),
    ("a full ring of answers", |sides| {
        by_mesh(sides, 1, ask_twice, answer)
    }),
];

/// Whoever takes this has played to the end.
const OVER: u64 = u64::MAX;

/// Items that `fill` has in play.
const ITEMS: usize = 8;

/// A shard's ends of the mesh, with one other shard.
struct Ends {
    side: Side,
    mesh: Mesh<u64>,
    other: usize,
    doorbell: Arc<Doorbell>,
    /// What was taken, and is to be sent on.
    #[expect(clippy::vec_box, reason = "the box is what crosses")]
    taken: Vec<Box<u64>>,
}

fn by_mesh(
    sides: [Side; 2],
    capacity: usize,
    asks: fn(Ends),
    answers: fn(Ends),
) -> [JoinHandle<()>; 2] {
    let doorbells = [(); 2].map(|()| Arc::new(Doorbell::default()));
    let seats = seats(2).into_iter().map(|seat| seat.offer(capacity));
    // All have offered before one waits for the others.
    let seats: Vec<_> = seats.collect();
    let players = seats.into_iter().zip(sides).zip([asks, answers]);
    let threads = players.enumerate().map(|(own, ((seat, side), play))| {
        let ends = Ends {
            side,
            mesh: seat.complete(&doorbells).expect("both are here"),
            other: 1 - own,
            doorbell: doorbells[own].clone(),
            taken: Vec::new(),
        };
        thread::spawn(move || play(ends))
    });
    let threads: Vec<_> = threads.collect();
    threads.try_into().expect("two threads")
}

/// One item goes there and back.
fn ask(mut ends: Ends) {
    ends.taken.push(Box::default());
    while ends.side.goes_on() {
        ends.side.pause();
        ends.ask_next();
        ends.await_back(1);
    }
    ends.end();
}

/// The second item finds the ring of answers full: whoever is to give it back sleeps until there is
/// room.
fn ask_twice(mut ends: Ends) {
    ends.taken.extend([Box::default(), Box::default()]);
    while ends.side.goes_on() {
        ends.ask_next();
        while !ends.mesh.has_room(ends.other) {
            thread::yield_now();
        }
        ends.ask_next();
        ends.side.pause();
        ends.await_back(2);
    }
    ends.end();
}

/// Answers each item as it comes.
fn answer(mut ends: Ends) {
    while let Some(item) = ends.await_asked() {
        ends.side.pause();
        let given = ends.mesh.give_back(ends.other, item);
        assert!(given.is_ok(), "no more is taken than may be given back");
        ends.mesh.publish();
    }
}

/// Sends whatever it has, and sleeps where the ring has no room for it.
fn fill(mut ends: Ends) {
    ends.taken.extend([(); ITEMS].map(|()| Box::default()));
    while ends.side.goes_on() {
        ends.await_back(1);
        ends.side.pause();
        ends.ask_next();
    }
    ends.end();
}

/// Gives nothing back until it has all: what wakes the other side is room alone.
fn take_and_keep(mut ends: Ends) {
    let mut kept = Vec::new();
    while let Some(item) = ends.await_asked() {
        // Room was made.
        ends.mesh.publish();
        ends.side.pause();
        kept.push(item);
        if kept.len() < ITEMS {
            continue;
        }
        while let Some(item) = kept.pop() {
            let given = ends.mesh.give_back(ends.other, item);
            ends.mesh.publish();
            if let Err(item) = given {
                if ends.mesh.is_gone(ends.other) {
                    return;
                }
                kept.push(item);
                thread::yield_now();
            }
        }
    }
}

impl Ends {
    /// Sends an item over, and sleeps until there is room for it.
    fn ask_next(&mut self) {
        let mut item = self.taken.pop().expect("an item");
        while let Err(back) = self.mesh.ask(self.other, item) {
            item = back;
            if self.take_back() == 0 {
                self.park(true);
            }
        }
        self.mesh.publish();
        self.side.next_round();
    }

    /// Sleeps until it has so many items.
    fn await_back(&mut self, items: usize) {
        loop {
            self.take_back();
            if self.taken.len() >= items {
                return;
            }
            self.park(false);
        }
    }

    fn take_back(&mut self) -> usize {
        let count = self.mesh.take_back(self.other, &mut self.taken);
        // Room was made.
        self.mesh.publish();
        count
    }

    /// Sleeps until there is an item to answer and room for it on its way back. `None`: the game is
    /// over.
    fn await_asked(&mut self) -> Option<Box<u64>> {
        while self.mesh.take_asked(self.other, 1, &mut self.taken) == 0 {
            self.park(false);
        }
        self.side.next_round();
        self.taken.pop().filter(|item| **item != OVER)
    }

    fn park(&mut self, wants_room: bool) {
        let mesh = &mut self.mesh;
        self.side
            .park(&self.doorbell, || mesh.may_park(|_| wants_room));
    }

    fn end(&mut self) {
        self.taken.push(Box::new(OVER));
        self.ask_next();
    }
}

/// How another thread reaches a shard.
struct Mail {
    side: Side,
    inbox: Inbox<u64>,
    port: Port<u64>,
    doorbell: Arc<Doorbell>,
    rings_heard: u64,
}

fn by_inbox(sides: [Side; 2]) -> [JoinHandle<()>; 2] {
    let doorbells = [(); 2].map(|()| Arc::new(Doorbell::default()));
    let [(to_first, first), (to_second, second)] = [0, 1].map(|own| inbox(1, &doorbells[own]));
    let [first_bell, second_bell] = doorbells;
    let [first_side, second_side] = sides;
    let mail = |side, inbox, port, doorbell| Mail {
        side,
        inbox,
        port,
        doorbell,
        rings_heard: u64::MAX,
    };
    let mut asks = mail(first_side, first, to_second, first_bell);
    let mut answers = mail(second_side, second, to_first, second_bell);
    let asking = thread::spawn(move || {
        while asks.side.goes_on() {
            asks.side.pause();
            asks.port.try_send(0).expect("room");
            asks.hear();
        }
        asks.port.try_send(OVER).expect("room");
    });
    let answering = thread::spawn(move || {
        while answers.hear() != OVER {
            answers.side.pause();
            answers.port.try_send(0).expect("room");
        }
    });
    [asking, answering]
}

impl Mail {
    /// Sleeps until something comes. Looks into the inbox only if the doorbell was rung, as a shard
    /// does.
    fn hear(&mut self) -> u64 {
        loop {
            let rings = self.doorbell.rings();
            if rings != self.rings_heard {
                if let Some(item) = self.inbox.pop() {
                    self.side.next_round();
                    return item;
                }
                self.rings_heard = rings;
            }
            self.side.park(&self.doorbell, || self.inbox.is_empty());
        }
    }
}
