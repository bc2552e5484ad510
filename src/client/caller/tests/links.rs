//! A process of several shards, by several connections.

use uuid::Uuid;

use super::*;
use crate::wire::{Affinity, HandlerEntry, Hello};

/// Three shards; `sum` runs on the second.
fn welcome() -> Hello {
    let endpoints = (7400..7403).map(|port| format!("tcp://127.0.0.1:{port}"));
    Hello {
        endpoints: endpoints.collect(),
        shards: 3,
        shard: Some(0),
        handlers: vec![HandlerEntry::new("sum", Affinity::Shard(1))],
        ..Hello::of_instance(Uuid::from_u128(1))
    }
}

/// Has the caller know the shards, and returns its connection to the second once it wants one.
fn learn(bench: &mut Bench) -> Option<Connect> {
    let stale = bench.caller.learn_shards(bench.peer, &welcome(), 0);
    assert_eq!(stale, []);
    bench.caller.pop_wanted()
}

fn load(bench: &mut Bench, link: PeerId) -> usize {
    let mut outbox = Outbox::new(100, 1 << 20);
    bench.caller.stand(link, Standing::Up);
    bench.caller.load(bench.now, link, &mut outbox);
    outbox.messages()
}

#[test]
fn what_waited_for_the_welcome_takes_the_way_of_what_follows() {
    let mut bench = Bench::new();
    let mut first = bench.submit_waiting(Kind::Request);
    let link = learn(&mut bench).expect("a message waits for it");
    let endpoint = "tcp://127.0.0.1:7401".parse().unwrap();
    assert_eq!(link.to, Target::Endpoint(endpoint));
    let _second = bench.submit_waiting(Kind::Request);
    assert!(bench.caller.pop_wanted().is_none(), "it is opened once");
    assert!(
        !bench.load(bench.now),
        "nothing goes by the main connection"
    );
    assert_eq!(load(&mut bench, link.peer), 2);
    assert!(first.poll().is_none());
    assert_eq!(bench.caller.links_of(bench.peer), [link.peer]);
    assert_eq!(bench.caller.main_of(link.peer), Some(bench.peer));
}

#[test]
fn what_waited_for_a_link_that_is_given_up_goes_by_the_main_connection() {
    let mut bench = Bench::new();
    assert!(learn(&mut bench).is_none(), "no message needs it yet");
    let _first = bench.submit_waiting(Kind::Request);
    let link = bench.caller.pop_wanted().expect("it is wanted now");
    let _second = bench.submit_waiting(Kind::OneWay);
    bench.caller.give_up_link(bench.peer, link.peer);
    let _third = bench.submit_waiting(Kind::Confirm);
    assert!(bench.load(bench.now));
    let kinds = [bench.take(), bench.take(), bench.take()].map(|header| header.kind);
    assert_eq!(kinds, [Kind::Request, Kind::OneWay, Kind::Confirm]);
    assert_eq!(load(&mut bench, link.peer), 0);
}

#[test]
fn another_shard_or_process_is_not_the_one_that_was_told_of() {
    let mut bench = Bench::new();
    let _waiting = bench.submit_waiting(Kind::Request);
    let link = learn(&mut bench).expect("a message waits for it").peer;
    let is_met = |hello: Hello| bench.caller.is_met(bench.peer, link, &hello);
    let shard = |shard| Hello { shard, ..welcome() };
    assert!(is_met(shard(Some(1))));
    assert!(!is_met(shard(Some(2))) && !is_met(shard(None)));
    assert!(!is_met(Hello {
        shard: Some(1),
        ..Hello::of_instance(Uuid::from_u128(2))
    }));
}

#[test]
fn a_closed_process_leaves_no_connection_to_be_begun() {
    // Whichever of its connections is closed first.
    for is_link_first in [false, true] {
        let mut bench = Bench::new();
        let mut waiting = bench.submit_waiting(Kind::Request);
        bench.caller.learn_shards(bench.peer, &welcome(), 0);
        let links = bench.caller.links_of(bench.peer);
        if !is_link_first {
            bench.caller.close(bench.peer, Some(&mut bench.outbox));
            assert!(!bench.caller.wants_links(), "nobody would close it");
        }
        for link in links {
            bench.caller.close(link, None);
            assert!(!bench.caller.wants_links());
        }
        bench.caller.close(bench.peer, Some(&mut bench.outbox));
        waiting.expect_not_sent(NotSent::Closed);
        assert!(bench.caller.pop_wanted().is_none());
        bench.assert_over(AccountSnapshot {
            not_sent: 1,
            ..account(1)
        });
    }
}

/// The last handle to a process that has connected is gone while a one-way message stands in the
/// outbox, and another handle sends by the same connection.
#[test]
fn what_another_handle_left_in_the_outbox_is_counted_once() {
    for is_lost in [false, true] {
        let mut bench = Bench::new();
        let instance = Uuid::from_u128(5);
        let speak = |bench: &mut Bench| {
            bench.peer = PeerId::unique();
            bench.caller.open(&Connect {
                to: Target::Caller(instance),
                is_routed: true,
                ..connect_to(bench.peer, &bench.shared)
            });
            let bound = bench.caller.bind(bench.peer, Standing::Up, &bench.outbox);
            let link = bound.expect("it is spoken of");
            let (message, _) = bench.message(Kind::OneWay);
            bench.caller.submit(bench.now, message);
            bench.caller.load(bench.now, link, &mut bench.outbox);
            link
        };
        let first = speak(&mut bench);
        bench.caller.let_go(first, Some(&bench.outbox));
        bench.caller.close(bench.peer, None);
        let second = speak(&mut bench);
        assert_eq!(bench.outbox.messages(), 2);
        let (one_way_sent, lost) = match is_lost {
            false => {
                bench.outbox.pop_front();
                bench.settle();
                assert_eq!(bench.account().one_way_sent, 1, "counted as it was let go");
                bench.outbox.pop_front();
                bench.settle();
                (2, 0)
            }
            true => {
                bench.caller.part(second, &mut bench.outbox);
                (1, 1)
            }
        };
        bench.assert_over(AccountSnapshot {
            one_way_sent,
            lost,
            ..account(2)
        });
    }
}

/// Has the caller speak of a process that connects to this one.
fn speak_of_caller(bench: &mut Bench) {
    bench.peer = PeerId::unique();
    bench.caller.open(&Connect {
        to: Target::Caller(Uuid::from_u128(5)),
        is_routed: true,
        ..connect_to(bench.peer, &bench.shared)
    });
}

fn submit(bench: &mut Bench) -> Answer {
    let (message, answer) = bench.message(Kind::Request);
    bench.caller.submit(bench.now, message);
    answer
}

#[test]
fn what_waits_for_a_peer_to_connect_goes_by_its_connection_or_comes_back() {
    for connects in [false, true] {
        let mut bench = Bench::new();
        speak_of_caller(&mut bench);
        let mut call = bench.submit_waiting(Kind::Request);
        if connects {
            let (main, outbox) = (bench.peer, &bench.outbox);
            let link = bench.caller.bind(main, Standing::Up, outbox);
            let link = link.expect("it is spoken of");
            // It has a connection: nothing comes back.
            bench.caller.miss(main);
            assert!(call.poll().is_none());
            let (now, outbox) = (bench.now, &mut bench.outbox);
            assert!(bench.caller.load(now, link, outbox));
            assert_eq!(bench.outbox.messages(), 1);
        } else {
            bench.caller.miss(bench.peer);
            call.expect_not_sent(NotSent::NotConnected);
        }
    }
}

/// Nothing of it is kept, or a peer that comes and goes would use up the memory.
#[test]
fn a_connection_that_has_ended_leaves_nothing_behind() {
    for is_lost in [false, true] {
        let mut bench = Bench::new();
        speak_of_caller(&mut bench);
        bench.caller.miss(bench.peer);
        let bound = bench.caller.bind(bench.peer, Standing::Up, &bench.outbox);
        let link = bound.expect("it is spoken of");
        assert_eq!(bench.caller.instance_of(link), None, "it is no handle");
        bench.caller.stand(link, Standing::Down);
        let mut waiting = submit(&mut bench);
        assert_eq!(bench.caller.busy(0), Some(link));
        match is_lost {
            false => bench.caller.let_go(link, None),
            true => {
                bench.caller.part(link, &mut bench.outbox);
            }
        }
        waiting.expect_not_sent(match is_lost {
            false => NotSent::Closed,
            true => NotSent::ConnectionLost,
        });
        assert!(!bench.caller.knows(link));
        assert_eq!(bench.caller.busy(0), None);
        assert_eq!(bench.caller.links_of(bench.peer), []);
        // Until it is known whether there is another, what is sent waits.
        let mut behind = submit(&mut bench);
        assert!(behind.poll().is_none());
        bench.caller.miss(bench.peer);
        behind.expect_not_sent(NotSent::NotConnected);
    }
}
