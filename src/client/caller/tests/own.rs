//! What a shard's own tasks send, and answers that nobody waits for.

use super::*;

/// The tasks of a shard hold no credit: the queue itself is their bound.
#[test]
fn what_a_shards_own_tasks_send_ends_once_and_within_the_bounds() {
    let mut bench = Bench::new();
    let order = |kind| Order {
        kind,
        codec: Codec::Json,
        handler: HandlerKey::of("sum"),
        route_key: 7,
        payload: Bytes::from_static(b"payload").into(),
    };
    let (now, peer) = (bench.now, bench.peer);
    let call = |bench: &mut Bench| {
        let order = &mut order(Kind::Request);
        bench.caller.submit_call(now, peer, order, ms(10))
    };
    let poll = |answer: &mut LocalAnswer| {
        let mut cx = Context::from_waker(Waker::noop());
        match std::pin::Pin::new(answer).poll(&mut cx) {
            Poll::Pending => None,
            Poll::Ready(outcome) => outcome,
        }
    };
    // One waits for the connection, two find it; then it is full.
    let mut waited = call(&mut bench).unwrap();
    assert!(bench.load(now) && bench.outbox.messages() == 1);
    let mut staged = call(&mut bench).unwrap();
    bench
        .caller
        .submit_one_way(peer, &mut order(Kind::OneWay))
        .unwrap();
    assert_eq!(call(&mut bench).unwrap_err(), NotSent::Full);
    assert!(bench.caller.wants_load());
    assert!(bench.load(now));
    let correlation = bench.take().correlation;
    assert!(bench.answer(Kind::Response, correlation, b"first"));
    match poll(&mut waited) {
        Some(Outcome::Answered(_, reply)) => assert_eq!(reply, b"first"[..]),
        other => panic!("{other:?}"),
    }
    // The connection goes with the second unsent, and with a third that is only staged.
    let dropped = call(&mut bench).unwrap();
    drop(dropped);
    bench.lose_connection();
    match poll(&mut staged) {
        Some(Outcome::NotSent(NotSent::ConnectionLost, payload)) => {
            assert_eq!(payload, b"payload"[..]);
        }
        other => panic!("{other:?}"),
    }
    bench.caller.refuse_new();
    assert_eq!(call(&mut bench).unwrap_err(), NotSent::Closed);
    bench.assert_over(AccountSnapshot {
        handled: 1,
        not_sent: 2,
        lost: 1,
        ..account(4)
    });
}

#[test]
fn an_answer_that_nobody_waits_for_any_more_is_still_entered() {
    let mut bench = Bench::new();
    let (request, answer) = bench.submit_sent(Kind::Request);
    drop(answer);
    assert!(bench.answer(Kind::Response, request.correlation, b""));
    bench.assert_over(AccountSnapshot {
        handled: 1,
        ..account(1)
    });
}
