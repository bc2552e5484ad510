//! One side of a game: how it sleeps, what wakes it, and what it has counted.

use std::{
    hint,
    sync::{
        Arc,
        atomic::{
            AtomicU8, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Wake, Waker},
    thread,
};

use corelane::route::Doorbell;
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// A sleeper looks so often before it lets others have the CPU, of which there may be one only.
const LOOKS: u32 = 200;
/// Of the pauses that shift the two sides against each other, the longest: about as long as an item
/// takes from one CPU to the other, in steps of about a cycle.
const PAUSE_MAX: u32 = 1_000;
/// The game goes on for so many rounds before it is looked whether that was enough.
const ROUNDS_BETWEEN_LOOKS: u64 = 32;

/// What the watching thread sees of a side. A cache line's size apart from all else, so that
/// counting one side does not slow the other.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Progress {
    /// One of the three below.
    sleep: AtomicU8,
    rounds: AtomicU64,
    parks: AtomicU64,
    slept: AtomicU64,
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const WOKEN: u8 = 2;

impl Progress {
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(SeqCst)
    }

    pub(crate) fn parks(&self) -> u64 {
        self.parks.load(SeqCst)
    }

    pub(crate) fn slept(&self) -> u64 {
        self.slept.load(SeqCst)
    }

    /// If it sleeps and is not woken: which of its sleeps this is.
    pub(crate) fn current_sleep(&self) -> Option<u64> {
        let slept = self.slept();
        (self.sleep.load(SeqCst) == ASLEEP && slept == self.slept()).then_some(slept)
    }

    /// Until it is woken, be that before it gets here.
    fn sleep(&self) {
        let asleep = self.sleep.compare_exchange(AWAKE, ASLEEP, SeqCst, SeqCst);
        let mut looks = 0;
        while asleep.is_ok() && self.sleep.load(SeqCst) == ASLEEP {
            looks += 1;
            match looks < LOOKS {
                true => hint::spin_loop(),
                false => thread::yield_now(),
            }
        }
    }
}

impl Wake for Progress {
    fn wake(self: Arc<Self>) {
        self.sleep.store(WOKEN, SeqCst);
    }
}

/// What a side's thread plays with.
pub(crate) struct Side {
    progress: Arc<Progress>,
    other: Arc<Progress>,
    waker: Waker,
    races: u64,
    random: SmallRng,
    /// The last look has found something, which is not yet taken: this is the same race still.
    has_raced: bool,
    /// How often it was asked whether to go on.
    asked: u64,
}

impl Side {
    pub(crate) fn pair(progress: &[Arc<Progress>; 2], races: u64, seed: u64) -> [Self; 2] {
        [0, 1].map(|side| Self {
            progress: progress[side].clone(),
            other: progress[1 - side].clone(),
            waker: progress[side].clone().into(),
            races,
            random: SmallRng::seed_from_u64(seed << 1 | side as u64),
            has_raced: false,
            asked: 0,
        })
    }

    /// Whether there were not yet races enough. To be asked by the side that begins the rounds.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.asked += 1;
        let is_time_to_look = self.asked.is_multiple_of(ROUNDS_BETWEEN_LOOKS);
        !is_time_to_look || self.progress.parks() + self.other.parks() < self.races
    }

    /// Counts a round: something has come, or has gone out.
    pub(crate) fn next_round(&mut self) {
        self.has_raced = false;
        let rounds = self.progress.rounds() + 1;
        self.progress.rounds.store(rounds, Relaxed);
    }

    /// Takes a while, or none.
    pub(crate) fn pause(&mut self) {
        let longest = self.random.random_range(0..=PAUSE_MAX);
        for step in 0..self.random.random_range(0..=longest) {
            hint::black_box(step);
        }
    }

    /// Parks as a shard does, unless the last look finds that there is something to do.
    pub(crate) fn park(&mut self, doorbell: &Doorbell, may_park: impl FnOnce() -> bool) {
        // What comes meanwhile must be found by the last look, or wake.
        self.pause();
        let progress = &self.progress;
        if !self.has_raced {
            progress.parks.store(progress.parks() + 1, Relaxed);
        }
        progress.sleep.store(AWAKE, SeqCst);
        doorbell.prepare_to_park(&self.waker);
        let may_sleep = may_park();
        if may_sleep {
            progress.slept.store(progress.slept() + 1, SeqCst);
            progress.sleep();
        }
        doorbell.leave();
        if !may_sleep && self.has_raced {
            thread::yield_now();
        }
        self.has_raced = !may_sleep;
    }
}
