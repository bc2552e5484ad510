//! What closing a peer ends, and what it leaves.

use super::*;

#[test]
fn closing_ends_everything() {
    let mut bench = Bench::new();
    let (_, mut sent) = bench.submit_sent(Kind::Request);
    let mut boxed = bench.submit_boxed(Kind::Confirm);
    bench.submit_boxed(Kind::OneWay);
    let mut waiting = bench.submit_waiting(Kind::Request);
    bench.caller.close(bench.peer, Some(&mut bench.outbox));
    sent.expect_indeterminate(Indeterminate::Stopped);
    boxed.expect_not_sent(NotSent::Closed);
    waiting.expect_not_sent(NotSent::Closed);
    bench.assert_over(AccountSnapshot {
        indeterminate: 1,
        not_sent: 2,
        lost: 1,
        ..account(4)
    });
}

#[test]
fn closing_one_peer_leaves_the_others_calls() {
    let mut bench = Bench::new();
    let (request, mut reply) = bench.submit_sent(Kind::Request);
    let other = PeerId::unique();
    bench.caller.open(&connect_to(other, &bench.shared));
    bench.caller.close(other, None);
    assert!(reply.poll().is_none());
    assert!(bench.answer(Kind::Response, request.correlation, b""));
}

#[test]
fn a_closed_peer_takes_nothing_and_gives_the_payload_back() {
    let mut bench = Bench::new();
    bench.caller.close(bench.peer, Some(&mut bench.outbox));
    let mut answer = bench.submit_boxed(Kind::Request);
    answer.expect_not_sent(NotSent::Closed);
    assert!(bench.outbox.is_empty());
    assert_eq!(ends(&mut bench.caller), 1);
}

/// Late as it comes, it is neither staged nor begun.
#[test]
fn what_is_submitted_after_its_deadline_is_not_sent() {
    let mut bench = Bench::new();
    bench.caller.stand(bench.peer, Standing::Up);
    let (message, mut answer) = bench.message(Kind::Request);
    let late = bench.now + ms(10);
    bench.caller.submit(late, message);
    answer.expect_not_sent(NotSent::Deadline);
    assert!(!bench.load(late) && bench.outbox.is_empty());
    bench.assert_over(AccountSnapshot {
        not_sent: 1,
        ..account(1)
    });
}

/// It takes nothing new; what was accepted before it said goodbye goes to it.
#[test]
fn a_draining_peer_is_sent_what_was_taken_for_it() {
    let mut bench = Bench::new();
    let _waiting = bench.submit_waiting(Kind::Request);
    bench.caller.stand(bench.peer, Standing::Draining);
    let (message, mut refused) = bench.message(Kind::Request);
    bench.caller.submit(bench.now, message);
    refused.expect_not_sent(NotSent::Draining);
    let (now, peer) = (bench.now, bench.peer);
    assert!(bench.caller.load(now, peer, &mut bench.outbox));
    let correlation = bench.take().correlation;
    assert!(bench.answer(Kind::Response, correlation, b""));
    bench.assert_over(AccountSnapshot {
        handled: 1,
        not_sent: 1,
        ..account(2)
    });
}

/// The caller has not heard of it by then.
#[test]
fn what_the_engine_has_taken_was_sent_though_its_peer_is_closed() {
    let mut bench = Bench::new();
    let mut taken = bench.submit_boxed(Kind::Confirm);
    bench.submit_boxed(Kind::OneWay);
    bench.outbox.pop_front();
    bench.outbox.pop_front();
    bench.submit_boxed(Kind::OneWay);
    bench.caller.close(bench.peer, Some(&mut bench.outbox));
    taken.expect_indeterminate(Indeterminate::Stopped);
    bench.assert_over(AccountSnapshot {
        indeterminate: 1,
        one_way_sent: 1,
        lost: 1,
        ..account(3)
    });
}

/// They stand among the caller's own messages, and are no ends of those.
#[test]
fn answers_that_are_lost_with_a_connection_are_counted() {
    let mut bench = Bench::new();
    let mut boxed = bench.submit_boxed(Kind::Request);
    for kind in [Kind::Nack, Kind::Cancel] {
        bench.outbox.push(&Header::new(kind, 7), &[]).unwrap();
    }
    assert_eq!(bench.caller.lost(bench.peer, &mut bench.outbox), 1);
    boxed.expect_not_sent(NotSent::ConnectionLost);
    bench.assert_over(AccountSnapshot {
        not_sent: 1,
        ..account(1)
    });
}
