//! Ten times too much load, in virtual time: what it must not cost those who are admitted.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    client::Peer,
    engine::sim::Weather,
    error::{CallError, NotSent},
    handler::inline_raw,
    shard::{ShardOptions, Shedding},
    wire::Reason,
};
use fastrand::Rng;
use quanta::{Instant, Mock};

use crate::{scenario::random_limits, world::World};

/// What a message costs the server that it handles, and one that it refuses, which is what
/// `cargo bench --bench overload` measures and some more.
const WORK: Duration = Duration::from_micros(100);
const REFUSAL: Duration = Duration::from_nanos(700);
const PEAK_PER_S: f64 = 1e6 / 100.0;

const SHEDDING: Shedding = Shedding {
    target: Duration::from_millis(2),
    after: Duration::from_millis(20),
};

type Call = Pin<Box<dyn Future<Output = Result<Bytes, CallError>>>>;

/// A server of one shard, and a client that sends at its own pace, whatever comes back.
struct Flood {
    world: World,
    time: Arc<Mock>,
    peer: Peer,
    random: Rng,
    flights: VecDeque<(Instant, Call)>,
}

/// What came of the messages that were due in some span.
#[derive(Default)]
struct Outcome {
    answered: usize,
    refused: usize,
    /// When those that were answered were due.
    due: Vec<Instant>,
    /// From then to the answer, in the order of the answers.
    took: Vec<Duration>,
    /// When the last one was due that was not answered.
    last_refused: Option<Instant>,
    /// The most that were under way once the first 100 ms were over.
    most_under_way: usize,
}

impl Outcome {
    fn percentile(&self, per_cent: usize) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() * per_cent / 100).min(sorted.len() - 1)]
    }
}

impl Flood {
    fn new(shedding: Option<Shedding>) -> Self {
        let mut limits = random_limits(&mut Rng::with_seed(0));
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (1_000, 4 << 20);
        limits.shard = ShardOptions {
            turn_messages_max: 8,
            outstanding_max: 1 << 16,
            outgoing_messages_max: 1_000,
            outgoing_bytes_max: 4 << 20,
            buffered_bytes_max: 64 << 20,
            inbox_capacity: 1_000,
            shedding,
            ..limits.shard
        };
        // As much as the kernel's buffers hold of small messages.
        let weather = Weather {
            in_flight_max: 50_000,
            ..Weather::default()
        };
        let mut world = World::new(1, weather, limits);
        let time = world.mock.clone();
        let spent = time.clone();
        let work = inline_raw("work", move |payload, reply, _cx| {
            spent.increment(WORK);
            reply.extend_from_slice(payload);
            Ok(())
        });
        world.add_process(0, 1, true, &[work]);
        // The client takes one turn while the server takes one, which may last for long.
        world.limits.shard.turn_messages_max = 1_000;
        world.add_process(1, 1, true, &[]);
        let endpoint = world.processes[0].shards[0].endpoint.clone();
        let client = world.processes[1].shards[0].client().unwrap();
        let peer = client.connect(&endpoint).unwrap();
        Self {
            world,
            time,
            peer,
            random: Rng::with_seed(7),
            flights: VecDeque::new(),
        }
    }

    /// Sends for so long at this rate, at random moments, and waits until all have ended if asked
    /// to. Requests of before end in here, too.
    fn send(&mut self, per_s: f64, span: Duration, until_all_ended: bool) -> Outcome {
        let began = self.world.now();
        let end = began + span;
        let mut due = began;
        let mut outcome = Outcome::default();
        while due < end || (until_all_ended && !self.flights.is_empty()) {
            let now = self.world.now();
            while due <= now && due < end {
                self.send_one(due, &mut outcome);
                let gap_s = -self.random.f64().max(1e-9).ln() / per_s;
                due += Duration::from_secs_f64(gap_s);
            }
            let worked = self.world.turn_all();
            self.land(began, &mut outcome);
            if now >= began + Duration::from_millis(100) {
                outcome.most_under_way = outcome.most_under_way.max(self.flights.len());
            }
            if !worked && self.world.now() == now {
                let later = now + Duration::from_secs(10);
                self.world.advance(if due < end { due } else { later });
            }
        }
        outcome
    }

    fn send_one(&mut self, due: Instant, outcome: &mut Outcome) {
        let client = self.world.processes[1].shards[0].client().unwrap();
        let message = client.message("work").raw_copy(&[7; 64]).to(&self.peer);
        match message.request().within(Duration::from_secs(1)).send() {
            Ok(call) => self.flights.push_back((due, Box::pin(call))),
            Err(error) => {
                assert_eq!(error.why, NotSent::Full);
                outcome.refused += 1;
            }
        }
    }

    /// Answers and refusals come in the order of the messages.
    fn land(&mut self, began: Instant, outcome: &mut Outcome) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut refused = 0;
        while let Some((due, call)) = self.flights.front_mut() {
            let Poll::Ready(reply) = call.as_mut().poll(&mut cx) else {
                break;
            };
            let due = *due;
            self.flights.pop_front();
            match reply {
                Ok(_) if due >= began => {
                    outcome.answered += 1;
                    outcome.due.push(due);
                    outcome.took.push(self.world.now() - due);
                }
                Ok(_) => {}
                Err(CallError::Nack { reason, .. }) => {
                    assert_eq!(reason, Reason::Overloaded);
                    refused += 1;
                    if due >= began {
                        outcome.refused += 1;
                        outcome.last_refused = Some(due);
                    }
                }
                Err(CallError::Indeterminate(_) | CallError::NotSent(_)) if due < began => {}
                Err(error) => {
                    assert!(matches!(error, CallError::NotSent(_)), "{error}");
                    outcome.refused += 1;
                }
            }
        }
        self.time.increment(refused * REFUSAL);
    }
}

/// The server alone decides: its client sends on, ten times as much as it can handle.
#[test]
fn ten_times_too_much_costs_those_who_are_admitted_little() {
    let second = Duration::from_secs(1);
    let mut flood = Flood::new(Some(SHEDDING));
    flood.send(0.5 * PEAK_PER_S, second / 10, true);
    let near = flood.send(0.9 * PEAK_PER_S, 4 * second, true);
    assert!(near.refused * 1_000 < near.answered, "{}", near.refused);

    let over = flood.send(10.0 * PEAK_PER_S, 4 * second, false);
    let end = flood.world.now();
    let after = flood.send(0.5 * PEAK_PER_S, second, true);

    let goodput = over.answered as f64 / 4.0;
    assert!(goodput >= 0.9 * PEAK_PER_S, "{goodput} a second");
    assert!(over.refused > 8 * over.answered, "{}", over.refused);
    let (calm, flooded) = (near.percentile(99), over.percentile(99));
    assert!(
        flooded <= 2 * calm,
        "p99 {flooded:?}, {calm:?} at 90% of peak"
    );
    // All that is under way, wherever it stands: what comes in the time that it may wait.
    let waits_at_most = 2 * SHEDDING.target;
    let most = 10.0 * PEAK_PER_S * waits_at_most.as_secs_f64();
    assert!(
        (over.most_under_way as f64) <= most,
        "{} were under way",
        over.most_under_way
    );

    let normal = end + Duration::from_millis(20);
    assert!(after.last_refused.is_none_or(|due| due < normal));
    let due = after.due.iter().zip(&after.took);
    let late = due.filter(|&(&due, &took)| due >= normal && took > calm);
    assert_eq!(late.count(), 0, "slower than at 90% of peak, 20 ms later");
}

/// What the test above would not see if it measured nothing.
#[test]
fn without_a_target_those_who_are_admitted_wait_for_all_before_them() {
    let mut flood = Flood::new(None);
    let near = flood.send(0.9 * PEAK_PER_S, Duration::from_secs(1), true);
    let over = flood.send(10.0 * PEAK_PER_S, Duration::from_secs(1), false);
    assert!(over.percentile(99) > 10 * near.percentile(99));
}
