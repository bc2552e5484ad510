//! Calls that are cancelled and deadlines that pass, step by step: what runs is stopped, what waits
//! does not run, what has not left is never sent.

use std::time::Duration;

use bytes::Bytes;
use corelane::{
    client::Peer,
    engine::sim::Weather,
    handler::{inline_raw, spawned_raw},
    metrics::Counters,
    shard::ShardOptions,
    wire::{Header, Kind, Reason},
};
use fastrand::Rng;

use crate::{
    handlers::{Conduct, Order, Runs},
    load::{End, Mode, Sent},
    scenario::random_limits,
    stranger::Stranger,
    world::{Limits, World},
};

const MS: Duration = Duration::from_millis(1);

#[test]
fn the_task_of_a_cancelled_call_is_dropped() {
    for by_task in [false, true] {
        // The last shard is another than the one that reads it.
        for handler in ["sleep", "sleep.last"] {
            let mut it = Bench::new();
            let mut call = it.send(handler, by_task, 100 * MS);
            it.pass(20 * MS);
            assert_eq!((it.runs.take().len(), it.runs.stopped()), (1, 0));
            call.cancel();
            it.pass(20 * MS);
            assert_eq!(it.runs.stopped(), 1, "{handler}, by a task: {by_task}");
            let (serving, calling) = it.end();
            assert_eq!((serving.accepted, serving.indeterminate), (1, 1));
            assert_eq!((serving.stopped, serving.in_flight()), (1, 0));
            assert_eq!((calling.call_indeterminate, calling.late_answers), (1, 0));
        }
    }
}

#[test]
fn a_task_is_dropped_at_its_deadline_and_answers_nothing() {
    for handler in ["sleep", "sleep.last"] {
        let mut it = Bench::new();
        let call = it.send(handler, false, 30 * MS);
        it.pass(20 * MS);
        assert_eq!(it.runs.stopped(), 0);
        it.pass(20 * MS);
        assert_eq!(it.runs.stopped(), 1, "{handler}");
        drop(call);
        let (serving, calling) = it.end();
        assert_eq!((serving.indeterminate, serving.stopped), (1, 1));
        assert_eq!((calling.call_indeterminate, calling.late_answers), (1, 0));
    }
}

#[test]
fn what_waits_for_the_pool_does_not_run_once_it_is_cancelled() {
    for handler in ["block", "block.last"] {
        let mut it = Bench::new();
        let mut call = it.send(handler, true, 100 * MS);
        it.pass(20 * MS);
        call.cancel();
        it.pass(20 * MS);
        it.world.processes[0].pool.threads = 1;
        it.pass(20 * MS);
        assert!(it.runs.take().is_empty(), "{handler}");
        let (serving, _) = it.end();
        assert_eq!((serving.accepted, serving.lost, serving.stopped), (1, 1, 1));
    }
}

#[test]
fn what_has_not_left_is_taken_back() {
    for by_task in [false, true] {
        let mut it = Bench::new();
        // The connection stands: this one is staged.
        it.send("run", by_task, 100 * MS).cancel();
        it.pass(20 * MS);
        // And this one waits for a connection.
        it.world.network.cut_all();
        it.pass(MS / 10);
        it.send("run", by_task, 100 * MS).cancel();
        it.pass(20 * MS);
        assert!(it.runs.take().is_empty());
        let account = it.peer.account();
        assert_eq!((account.accepted, account.not_sent), (2, 2));
        let (serving, calling) = it.end();
        assert_eq!((serving.accepted, calling.not_sent), (0, 2));
    }
}

/// More than one turn looks at.
#[test]
fn a_thread_may_drop_all_its_calls_at_once() {
    let mut it = Bench::new();
    let calls: Vec<Sent> = (0..700)
        .map(|_| it.send("sleep", false, 100 * MS))
        .collect();
    it.pass(20 * MS);
    assert_eq!(it.runs.take().len(), 700);
    drop(calls);
    it.pass(20 * MS);
    assert_eq!(it.runs.stopped(), 700);
    assert_eq!(it.end().0.stopped, 700);
}

/// Nothing stops it between the two: it is for the task to see that it is late.
#[test]
fn what_another_task_makes_late_as_it_spins_does_not_run() {
    for name in ["line", "demoted"] {
        let mut it = Bench::new();
        let (runs, time) = (it.runs.clone(), it.world.mock.clone());
        let spin = move |payload: &[u8]| {
            runs.enter(payload);
            time.increment(20 * MS);
        };
        let demoted = spin.clone();
        let handler = match name {
            "line" => {
                let line = spawned_raw(name, move |payload: Bytes, _cx| {
                    let spin = spin.clone();
                    async move {
                        spin(&payload);
                        Ok(payload)
                    }
                });
                line.ordered_per_peer(5)
            }
            _ => {
                let inline = inline_raw(name, move |payload, _, _| {
                    demoted(payload);
                    Ok(())
                });
                inline.demote_after(1)
            }
        };
        it.world.add_process(4, 1, true, &[handler]);
        let endpoint = &it.world.processes[2].shards[0].endpoint;
        it.peer = it.world.processes[1].client.connect(endpoint).unwrap();
        it.pass(20 * MS);
        let first = it.send(name, false, 500 * MS);
        it.pass(20 * MS);
        assert_eq!(it.runs.take().len(), 1);
        let calls = [500 * MS, 10 * MS].map(|within| it.send(name, false, within));
        it.pass(50 * MS);
        assert_eq!(it.runs.take().len(), 1, "{name}");
        drop((first, calls));
        it.world.drain(2, MS);
        it.pass(100 * MS);
        let (total, _) = it.world.processes[2].last_words();
        let late = usize::from(Reason::DeadlineExceeded.to_u16());
        assert_eq!((total.handled, total.nacked_by_reason[late]), (2, 1));
    }
}

/// Or a connection would be read no more, once as many were cancelled as answers may wait.
#[test]
fn a_place_that_is_kept_for_an_answer_is_free_again_if_none_comes() {
    let mut it = Bench::with(|limits| {
        limits.shard.outgoing_messages_max = 8;
        limits.outgoing_messages_max = 8;
    });
    for _ in 0..3 {
        let mut calls = [(); 6].map(|()| it.send("sleep.last", false, 100 * MS));
        it.pass(MS);
        calls.iter_mut().for_each(Sent::cancel);
        it.pass(20 * MS);
    }
    let mut last = it.send("sleep.last", false, 100 * MS);
    it.pass(80 * MS);
    last.poll(it.world.now());
    assert_eq!(last.end, Some(End::Answered));
    assert!(it.end().0.stopped >= 8, "as many as may wait");
}

/// Nobody answers it, and so no answer is lost with its connection; one that is due is.
#[test]
fn what_is_stopped_has_no_answer_to_lose() {
    for (handler, within, lost) in [
        ("sleep", 30 * MS, 0),
        ("sleep.last", 30 * MS, 0),
        ("sleep", 100 * MS, 1),
        ("sleep.last", 100 * MS, 1),
    ] {
        let mut it = Bench::new();
        let call = it.send(handler, false, within);
        it.pass(20 * MS);
        it.world.network.cut_all();
        it.pass(60 * MS);
        drop(call);
        let (serving, _) = it.end();
        assert_eq!((serving.handled, serving.answers_lost), (lost, lost));
        assert_eq!((serving.stopped, serving.in_flight()), (1 - lost, 0));
    }
}

/// The number of a call is free once that is answered; a message that waits for its batch may bear
/// it then, and be cancelled.
#[test]
fn a_cancel_is_for_the_latest_message_of_its_number() {
    for handler in ["sleep", "block"] {
        let mut it = Bench::new();
        it.world.processes[0].pool.threads = 1;
        let (mut stranger, _peer) = Stranger::dialed(&mut it.world);
        let order = Order::returning(100);
        let mut say = |handler: &str, kind, world: &mut World, time| {
            let header = Header {
                handler: handler.into(),
                deadline_us: 1_000_000,
                ..Header::new(kind, 7)
            };
            stranger.say(&header, &order.encode());
            stranger.pass(world, time);
            stranger.count(Kind::Response)
        };
        let answers = say(handler, Kind::Request, &mut it.world, 20 * MS);
        assert_eq!((answers, it.runs.take().len()), (1, 1));
        say("gather", Kind::Request, &mut it.world, MS / 5);
        let answers = say("gather", Kind::Cancel, &mut it.world, 5 * MS);
        assert_eq!((answers, it.runs.take().len()), (1, 0), "{handler}");
    }
}

/// Nobody waits for a one-way message, and so nobody can stop waiting: its number means nothing.
#[test]
fn a_cancel_spares_a_one_way_message_that_bears_its_number() {
    let mut it = Bench::new();
    let (mut stranger, _peer) = Stranger::dialed(&mut it.world);
    let order = Order::returning(0);
    let one_way = Header {
        handler: "gather".into(),
        ..Header::new(Kind::OneWay, 7)
    };
    stranger.say(&one_way, &order.encode());
    stranger.say(&Header::new(Kind::Cancel, 7), &[]);
    stranger.pass(&mut it.world, 5 * MS);
    assert_eq!(it.runs.take().len(), 1);
}

/// Process 1 is connected to shard 0 of process 0, which has two and tells nobody.
struct Bench {
    world: World,
    runs: Runs,
    peer: Peer,
    next_id: u32,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adapt: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = random_limits(&mut Rng::with_seed(0));
        limits.shard = ShardOptions {
            turn_messages_max: 1_000,
            outstanding_max: 1_000,
            spawned_max: 1_000,
            outgoing_messages_max: 1_000,
            outgoing_bytes_max: 1 << 20,
            inbox_capacity: 1_000,
            buffered_bytes_max: 1 << 20,
            shedding: None,
            ..limits.shard
        };
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (1_000, 1 << 20);
        (limits.pool_threads, limits.pool_queue) = (0, 2);
        adapt(&mut limits);
        let mut world = World::new(0, Weather::default(), limits);
        let runs = Runs::new(world.mock.clone());
        world.add_process(0, 2, false, &runs.handlers());
        world.add_process(2, 1, true, &[]);
        let endpoint = &world.processes[0].shards[0].endpoint;
        let peer = world.processes[1].client.connect(endpoint).unwrap();
        let mut it = Self {
            world,
            runs,
            peer,
            next_id: 0,
        };
        it.pass(20 * MS);
        it
    }

    /// A request that takes 60 ms where it sleeps.
    fn send(&mut self, handler: &str, by_task: bool, within: Duration) -> Sent {
        let order = Order {
            id: self.next_id,
            lane: 0,
            sequence: self.next_id,
            conduct: Conduct::Return,
            takes_us: 60_000,
        };
        self.next_id += 1;
        let (now, to) = (self.world.now(), (0, &self.peer));
        let process = &self.world.processes[1];
        let sent = match by_task {
            true => {
                let client = process.shards[0].client().unwrap();
                Sent::send(
                    client.message(handler),
                    order,
                    Mode::Request,
                    to,
                    now,
                    within,
                )
            }
            false => {
                let message = process.client.message(handler);
                Sent::send(message, order, Mode::Request, to, now, within)
            }
        };
        sent.unwrap()
    }

    fn pass(&mut self, time: Duration) {
        self.world.pass(time, |_| {});
    }

    /// What the two processes have counted.
    fn end(mut self) -> (Counters, Counters) {
        for process in 0..2 {
            self.world.drain(process, Duration::from_secs(1));
            self.pass(Duration::from_secs(1));
        }
        let mut counted = self.world.processes.iter().map(|process| {
            let mut total = Counters::default();
            for node in &process.shards {
                total += node.last_counters().expect("it is over");
            }
            total
        });
        (counted.next().unwrap(), counted.next().unwrap())
    }
}
