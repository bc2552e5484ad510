//! Park and wake, raced: two threads play ping-pong over the ways between shards, and each time one
//! means to sleep while the other may just be about to wake it.
//!
//! A wake-up that is lost leaves both asleep for ever, and that is what is looked for; no time that
//! a slow machine could exceed is. A failure names its seed and round.
//!
//! `CORELANE_RACES=100000000 cargo test --release --test races -- --nocapture` runs that many;
//! `CORELANE_SEED=17` varies them.

#[path = "races/games.rs"]
mod games;
#[path = "races/side.rs"]
mod side;

use std::{sync::Arc, thread, time::Duration};

use games::{GAMES, Game};
use side::{Progress, Side};

/// In all; `CORELANE_RACES` runs more.
const RACES: u64 = 20_000;
const SEED: u64 = 1;
/// Of a hundred races, how many must have come to a sleep at least: with fewer, the test would show
/// little. On one CPU nearly all do.
const SLEPT_PERCENT_MIN: u64 = 5;
const LOOKED_EVERY: Duration = Duration::from_millis(20);

#[test]
fn no_wake_up_is_lost() {
    let races = number("CORELANE_RACES").unwrap_or(RACES);
    let seed = number("CORELANE_SEED").unwrap_or(SEED);
    for (name, game) in GAMES {
        play(name, game, races.div_ceil(GAMES.len() as u64), seed);
    }
}

/// Plays a game until both sides together have meant to park so many times.
fn play(name: &str, game: Game, races: u64, seed: u64) {
    let begun = std::time::Instant::now();
    let progress = [(); 2].map(|()| Arc::new(Progress::default()));
    let sides = Side::pair(&progress, races, seed);
    let mut threads: Vec<_> = game(sides).into();
    while !threads.is_empty() {
        thread::sleep(LOOKED_EVERY);
        // One that has failed says so, though the other may wait for it for ever.
        for ended in threads.extract_if(.., |thread| thread.is_finished()) {
            ended
                .join()
                .unwrap_or_else(|_| panic!("{name}: seed {seed}"));
        }
        if let Some(rounds) = asleep_for_ever(&progress) {
            panic!("{name}: both sleep: seed {seed}, rounds {rounds:?}");
        }
    }
    let (begun_to_park, slept) = progress.iter().fold((0, 0), |(parks, slept), side| {
        (parks + side.parks(), slept + side.slept())
    });
    println!(
        "{name}: {begun_to_park} races in {:.1?}, {slept} slept ({}%), none was lost",
        begun.elapsed(),
        100 * slept / begun_to_park
    );
    assert!(begun_to_park >= races);
    assert!(100 * slept >= SLEPT_PERCENT_MIN * begun_to_park, "{name}");
}

/// Both sides sleep, neither is woken, and so nobody is there to wake them: told by two looks at
/// each, in turn, between which neither side has moved.
fn asleep_for_ever(progress: &[Arc<Progress>; 2]) -> Option<[u64; 2]> {
    let look = || [0, 1].map(|side| progress[side].current_sleep());
    let (before, after) = (look(), look());
    let is_stuck = before == after && before.iter().all(Option::is_some);
    is_stuck.then(|| [0, 1].map(|side| progress[side].rounds()))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let parsed = text.parse();
    Some(parsed.unwrap_or_else(|_| panic!("{variable}={text}: a number is expected")))
}
