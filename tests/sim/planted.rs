//! Bugs of each class that the checks must find: one event in one place of a scenario's life.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
};

use fastrand::Rng;

use crate::{
    scenario::simulate_with,
    tampered::{Bug, Plant},
};

/// Seeds within which each must be found.
const SEEDS_MAX: u64 = 10_000;

#[test]
fn a_lost_answer_is_found() {
    find(Bug::LostAnswer, &["but there was an answer"]);
}

#[test]
fn a_double_run_is_found() {
    find(Bug::DoubleRun, &["ran twice", "answered twice"]);
}

#[test]
fn a_swapped_order_is_found() {
    find(Bug::SwappedOrder, &["of its lane"]);
}

#[test]
fn leaked_credit_is_found() {
    find(Bug::LeakedCredit, &["credit for"]);
}

#[test]
fn a_stale_epoch_is_found() {
    find(
        Bug::StaleEpoch,
        &["ran in process", "an answer to no call", "of its lane"],
    );
}

/// Runs seeds until one fails so. The bug strikes once, if at all; without it these seeds pass,
/// which the plain test shows. It may show in another way before: a message that was kept back and
/// never handed over is missing in the books, and one that was handed over twice is once too often
/// in them.
fn find(bug: Bug, complaints: &[&str]) {
    let mut others = 0;
    for seed in 0..SEEDS_MAX {
        let opportunity = Rng::with_seed(seed).usize(..100);
        let plant = Rc::new(Plant::new(bug, opportunity));
        let run = catch_unwind(AssertUnwindSafe(|| simulate_with(seed, plant)));
        let Err(panic) = run else { continue };
        let complaint = panic.downcast_ref::<String>().expect("a message");
        if complaints.iter().any(|it| complaint.contains(it)) {
            println!(
                "{bug:?}: found by seed {seed}, and {others} before in other ways: {complaint}"
            );
            return;
        }
        others += 1;
    }
    panic!("{bug:?} is not found in {SEEDS_MAX} seeds");
}
