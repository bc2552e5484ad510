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
    let mut none = order(Kind::Request);
    let within = Duration::ZERO;
    let refused = bench.caller.submit_call(now, peer, &mut none, within);
    assert_eq!(refused.unwrap_err(), NotSent::Deadline);
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

/// Whether it waits, is staged, or has left; of another thread, with credit, or the shard's own.
#[test]
fn a_call_that_nobody_waits_for_is_taken_back_or_cancelled() {
    let mut bench = Bench::new();
    let look = |bench: &mut Bench| {
        bench.caller.look_for_abandoned();
        bench.caller.begin_load();
    };
    drop(bench.submit_waiting(Kind::Request));
    look(&mut bench);
    // One of three that are staged: the credit of the others stays theirs.
    bench.caller.stand(bench.peer, Standing::Up);
    let mut staged: Vec<Answer> = Vec::new();
    for _ in 0..3 {
        let (message, answer) = bench.message(Kind::Request);
        bench.caller.submit(bench.now, message);
        staged.push(answer);
    }
    drop(staged.remove(1));
    look(&mut bench);
    assert_eq!(bench.shared.credit.waiting(), 2);
    assert!(bench.load(bench.now) && bench.outbox.messages() == 2);
    let correlations = [0; 2].map(|_| bench.take().correlation);
    assert_eq!(bench.shared.credit.waiting(), 0);
    // These have left.
    drop(staged);
    look(&mut bench);
    assert!(bench.load(bench.now));
    for correlation in correlations {
        let front = bench.outbox.front().expect("a cancel stands there");
        let header = Header::decode(front.header).unwrap();
        assert_eq!(
            (header.kind, header.correlation),
            (Kind::Cancel, correlation)
        );
        assert_eq!(
            (header.handler, header.route_key),
            (HandlerKey::of("sum"), 7)
        );
        bench.outbox.pop_front();
        bench.settle();
        assert!(!bench.answer(Kind::Response, correlation, b"late"));
    }
    bench.assert_over(AccountSnapshot {
        not_sent: 2,
        indeterminate: 2,
        ..account(4)
    });
}

fn one_way(bytes: usize) -> Order {
    Order {
        kind: Kind::OneWay,
        codec: Codec::Raw,
        handler: HandlerKey::of("sum"),
        route_key: 7,
        payload: Bytes::from(vec![0; bytes]).into(),
    }
}

/// Another thread's message waits for room; the shard's own does not overtake it as that comes.
#[test]
fn a_shards_own_message_stays_behind_what_waits() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        let _answer = bench.submit_boxed(Kind::Request);
    }
    bench.take();
    let peer = bench.peer;
    let mut order = one_way(0);
    bench.caller.submit_one_way(peer, &mut order).unwrap();
    bench.load(bench.now);
    let kinds = [bench.take(), bench.take(), bench.take()].map(|it| it.kind);
    assert_eq!(kinds, [Kind::Request; 3]);
    bench.load(bench.now);
    let last = Header::decode(bench.outbox.front().unwrap().header).unwrap();
    assert_eq!(last.kind, Kind::OneWay);
}

/// One that is larger than the bound passes alone, and what has left leaves room.
#[test]
fn what_waits_or_is_staged_is_bounded_in_bytes() {
    const LARGE: usize = 2 << 20;
    let mut bench = Bench::new();
    let peer = bench.peer;
    let send = |bench: &mut Bench, bytes| {
        let mut order = one_way(bytes);
        bench.caller.submit_one_way(peer, &mut order)
    };
    for standing in [Standing::Down, Standing::Up] {
        bench.caller.stand(peer, standing);
        // Whatever had waited left its room behind.
        for _ in 0..2 {
            send(&mut bench, LARGE).unwrap();
            assert_eq!(send(&mut bench, 1), Err(NotSent::Full));
            bench.load(bench.now);
            bench.outbox.pop_front();
            bench.settle();
            bench.caller.stand(peer, standing);
        }
        // Less their frames.
        let half = (1 << 19) - 1_000;
        assert_eq!([half, half].map(|it| send(&mut bench, it)), [Ok(()); 2]);
        assert_eq!(send(&mut bench, 10_000), Err(NotSent::Full));
        bench.load(bench.now);
        bench.outbox.pop_front();
        bench.outbox.pop_front();
        bench.settle();
    }
    bench.assert_over(AccountSnapshot {
        one_way_sent: 8,
        ..account(8)
    });
}

/// Each message's credit comes back as it leaves, and no other's; also on the next connection.
#[test]
fn credit_comes_back_message_by_message() {
    let mut bench = Bench::new();
    for lost in 0..3 {
        bench.submit_sent(Kind::OneWay);
        bench.submit_boxed(Kind::OneWay);
        bench.submit_boxed(Kind::OneWay);
        bench.settle();
        for waiting in [2, 1, 0] {
            assert_eq!(bench.shared.credit.waiting(), waiting);
            if waiting > 0 {
                bench.take();
            }
        }
        // One that is only staged.
        let (message, _) = bench.message(Kind::OneWay);
        bench.caller.submit(bench.now, message);
        assert_eq!(bench.shared.credit.waiting(), 1);
        bench.lose_connection();
        assert_eq!(bench.account().lost, lost + 1);
    }
    bench.assert_over(AccountSnapshot {
        one_way_sent: 9,
        lost: 3,
        ..account(12)
    });
}

/// However it stops waiting, the room that it took is free.
#[test]
fn what_waits_no_longer_leaves_its_room() {
    let mut bench = Bench::new();
    let peer = bench.peer;
    let call = |bench: &mut Bench, bytes| {
        let mut order = Order {
            kind: Kind::Request,
            ..one_way(bytes)
        };
        let (now, within) = (bench.now, ms(10));
        bench.caller.submit_call(now, peer, &mut order, within)
    };
    let expire = |bench: &mut Bench| bench.caller.expire(bench.now + ms(10));
    let queue = |bench: &mut Bench, take: fn(&mut Queue) -> VecDeque<_>| {
        take(bench.caller.queues.get_mut(&peer).unwrap()).len()
    };
    bench.caller.stand(peer, Standing::Down);
    for way in 0..3 {
        let _large = call(&mut bench, 1 << 20).unwrap();
        assert_eq!(call(&mut bench, 1).unwrap_err(), NotSent::Full);
        match way {
            0 => expire(&mut bench),
            1 => assert_eq!(queue(&mut bench, Queue::move_waiting), 1),
            _ => assert_eq!(queue(&mut bench, Queue::take_waiting), 1),
        }
        let _both = [1, 1].map(|bytes| call(&mut bench, bytes).unwrap());
        expire(&mut bench);
    }
}
