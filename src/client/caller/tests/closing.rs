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
