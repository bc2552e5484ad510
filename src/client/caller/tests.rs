//! Every end of a message. After each, all credit is back and the account adds up.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::*;
use crate::{
    client::Target,
    peers::{Account, AccountSnapshot, Credit, PeerShared},
    wire::Reason,
};

const OUTBOX_MAX: usize = 3;

/// A caller with one peer, and that peer's end of it.
struct Bench {
    caller: Caller,
    peer: PeerId,
    shared: Arc<PeerShared>,
    outbox: Outbox,
    now: Instant,
}

struct Answer(oneshot::AsyncReceiver<Outcome>);

fn connect_to(peer: PeerId, shared: &Arc<PeerShared>) -> Connect {
    Connect {
        peer,
        to: Target::Endpoint("tcp://127.0.0.1:7400".parse().expect("is an endpoint")),
        shared: shared.clone(),
        is_routed: false,
        prefers_ipc: false,
    }
}

/// How messages end that the account counts.
fn ends(caller: &mut Caller) -> u64 {
    let ends = caller.take_ends();
    ends.counts.iter().sum()
}

impl Bench {
    fn new() -> Self {
        let shared = Arc::new(PeerShared {
            credit: Credit::new(100, 1 << 20),
            account: Account::default(),
        });
        let peer = PeerId::unique();
        let mut caller = Caller::new(CallerLimits {
            outstanding_max: 4,
            messages_max: OUTBOX_MAX,
            bytes_max: 1 << 20,
        });
        caller.open(&connect_to(peer, &shared));
        Self {
            caller,
            peer,
            shared,
            outbox: Outbox::new(OUTBOX_MAX, 1 << 20),
            now: Instant::now(),
        }
    }

    fn message(&self, kind: Kind) -> (Submitted, Answer) {
        let (completion, answer) = oneshot::async_channel();
        let payload = Bytes::from_static(b"payload");
        assert!(self.shared.credit.try_take(payload.len()));
        let is_call = kind != Kind::OneWay;
        let order = Order {
            kind,
            codec: Codec::Json,
            handler: HandlerKey::of("sum"),
            route_key: 7,
            payload: payload.into(),
        };
        let message = Submitted {
            peer: self.peer,
            order,
            submitted_at: self.now,
            deadline: is_call.then(|| self.now + ms(10)),
            completion: is_call.then_some(completion),
        };
        (message, Answer(answer))
    }

    /// Submits while there is no connection.
    fn submit_waiting(&mut self, kind: Kind) -> Answer {
        let (message, answer) = self.message(kind);
        self.caller.stand(self.peer, Standing::Down);
        self.caller.submit(self.now, message);
        answer
    }

    /// Submits into the outbox.
    fn submit_boxed(&mut self, kind: Kind) -> Answer {
        let (message, answer) = self.message(kind);
        self.caller.stand(self.peer, Standing::Up);
        self.caller.submit(self.now, message);
        self.load(self.now);
        answer
    }

    /// The connection stands, and there is a turn.
    fn load(&mut self, now: Instant) -> bool {
        self.caller.stand(self.peer, Standing::Up);
        self.caller.load(now, self.peer, &mut self.outbox)
    }

    /// Submits, and has the engine take it. Returns its header as it left.
    fn submit_sent(&mut self, kind: Kind) -> (Header, Answer) {
        let answer = self.submit_boxed(kind);
        (self.take(), answer)
    }

    /// The engine takes the oldest message.
    fn take(&mut self) -> Header {
        let front = self.outbox.front().expect("stands in the outbox");
        assert_eq!(front.payload, b"payload");
        let header = Header::decode(front.header).unwrap();
        self.outbox.pop_front();
        self.settle();
        header
    }

    fn settle(&mut self) {
        if self.caller.busy(0).is_some() {
            self.caller.settle(0, Some(&self.outbox));
        }
    }

    fn answer(&mut self, kind: Kind, correlation: u64, payload: &[u8]) -> bool {
        let header = Header {
            reason: Reason::HandlerFailed,
            codec: Codec::Json,
            ..Header::new(kind, correlation)
        };
        let mut payload = payload.to_vec();
        let mut message = Received::apart(&[], &mut payload);
        self.caller
            .answer(self.now, self.peer, &header, &mut message)
    }

    fn lose_connection(&mut self) {
        self.caller.lost(self.peer, &mut self.outbox);
        assert!(self.outbox.is_empty());
    }

    fn account(&self) -> AccountSnapshot {
        self.shared.account.read()
    }

    /// Nothing is left: no message, no credit, no line of the account.
    #[track_caller]
    fn assert_over(&mut self, expected: AccountSnapshot) {
        assert_eq!(self.account(), expected);
        assert_eq!(expected.accepted, expected.settled());
        assert_eq!(self.shared.credit.waiting(), 0, "all credit is back");
        assert!(self.caller.is_idle() && self.caller.outstanding() == 0);
        assert_eq!(ends(&mut self.caller), expected.accepted);
    }
}

impl Answer {
    /// `None` while the call is outstanding.
    fn poll(&mut self) -> Option<Outcome> {
        let mut cx = Context::from_waker(Waker::noop());
        match std::pin::Pin::new(&mut self.0).poll(&mut cx) {
            Poll::Pending => None,
            Poll::Ready(outcome) => Some(outcome.expect("a call is never just dropped")),
        }
    }

    #[track_caller]
    fn expect_not_sent(&mut self, expected: NotSent) {
        match self.poll() {
            Some(Outcome::NotSent(why, payload)) => {
                assert_eq!((why, &payload[..]), (expected, b"payload".as_slice()));
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn expect_indeterminate(&mut self, expected: Indeterminate) {
        match self.poll() {
            Some(Outcome::Indeterminate(why)) => assert_eq!(why, expected),
            other => panic!("{other:?}"),
        }
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn account(accepted: u64) -> AccountSnapshot {
    AccountSnapshot {
        accepted,
        ..AccountSnapshot::default()
    }
}

#[test]
fn a_request_is_answered_with_its_reply_and_a_confirm_with_nothing() {
    let mut bench = Bench::new();
    let (request, mut reply) = bench.submit_sent(Kind::Request);
    assert_eq!((request.kind, request.codec), (Kind::Request, Codec::Json));
    assert_eq!((request.route_key, request.deadline_us), (7, 10_000));
    assert!(reply.poll().is_none());
    bench.now += ms(3);
    assert!(bench.answer(Kind::Response, request.correlation, b"3"));
    match reply.poll() {
        Some(Outcome::Answered(Codec::Json, payload)) => assert_eq!(payload, b"3"[..]),
        other => panic!("{other:?}"),
    }
    let round_trips: Vec<_> = bench.caller.drain_round_trips().collect();
    assert_eq!(round_trips, [(HandlerKey::of("sum"), ms(3))]);
    let ends = bench.caller.take_ends();
    assert_eq!((ends.calls, ends.of(Entry::Handled)), (1, 1));

    let (confirm, mut ack) = bench.submit_sent(Kind::Confirm);
    assert!(bench.answer(Kind::Ack, confirm.correlation, b""));
    assert!(matches!(ack.poll(), Some(Outcome::Answered(..))));
    assert_eq!(
        bench.account(),
        AccountSnapshot {
            handled: 2,
            ..account(2)
        }
    );
}

#[test]
fn a_nack_brings_its_reason_and_its_text_even_a_broken_one() {
    let mut bench = Bench::new();
    let (request, mut reply) = bench.submit_sent(Kind::Request);
    assert!(bench.answer(Kind::Nack, request.correlation, b"no \xff"));
    match reply.poll() {
        Some(Outcome::Nacked(Reason::HandlerFailed, text)) => assert_eq!(text, "no \u{fffd}"),
        other => panic!("{other:?}"),
    }
    bench.assert_over(AccountSnapshot {
        nacked: 1,
        ..account(1)
    });
}

#[test]
fn answers_that_are_late_twice_foreign_early_or_of_the_wrong_kind_change_nothing() {
    let mut bench = Bench::new();
    let (request, mut reply) = bench.submit_sent(Kind::Request);
    let correlation = request.correlation;
    let stranger = PeerId::unique();
    let response = Header::new(Kind::Response, correlation);
    let mut message = Received::apart(&[], &mut []);
    assert!(
        !bench
            .caller
            .answer(bench.now, stranger, &response, &mut message)
    );
    assert!(
        !bench.answer(Kind::Ack, correlation, b""),
        "an ack is for a confirm"
    );
    assert!(!bench.answer(Kind::Response, correlation ^ (1 << 32), b""));
    assert!(!bench.answer(Kind::Response, correlation ^ 1, b""));
    assert!(reply.poll().is_none());
    assert!(bench.answer(Kind::Response, correlation, b"first"));
    assert!(
        !bench.answer(Kind::Response, correlation, b"again"),
        "a duplicate"
    );
    assert!(matches!(reply.poll(), Some(Outcome::Answered(_, it)) if it == b"first"[..]));

    // What has not left cannot have an answer.
    let mut waiting = bench.submit_waiting(Kind::Request);
    for generation in 0..10 {
        let guess = (generation << 32) | (correlation & u64::from(u32::MAX));
        assert!(!bench.answer(Kind::Response, guess, b""));
    }
    assert!(waiting.poll().is_none());
    bench.now += ms(10);
    bench.caller.expire(bench.now);
    waiting.expect_not_sent(NotSent::Deadline);

    let (request, mut reply) = bench.submit_sent(Kind::Request);
    bench.now += ms(10);
    bench.caller.expire(bench.now);
    assert!(
        !bench.answer(Kind::Response, request.correlation, b""),
        "late"
    );
    reply.expect_indeterminate(Indeterminate::Deadline);
    bench.assert_over(AccountSnapshot {
        handled: 1,
        not_sent: 1,
        indeterminate: 1,
        ..account(3)
    });
}

#[test]
fn a_deadline_passes_while_waiting_while_boxed_and_once_sent() {
    let mut bench = Bench::new();
    let mut waiting = bench.submit_waiting(Kind::Request);
    assert_eq!(bench.caller.next_deadline(), Some(bench.now + ms(10)));
    bench.caller.expire(bench.now + ms(9));
    assert!(waiting.poll().is_none());
    bench.caller.expire(bench.now + ms(10));
    waiting.expect_not_sent(NotSent::Deadline);
    assert!(
        !bench.caller.is_sending(bench.peer),
        "it is not sent after its end"
    );

    // It stands in the outbox and may yet leave: nobody can say.
    let mut boxed = bench.submit_boxed(Kind::Confirm);
    bench.caller.expire(bench.now + ms(10));
    boxed.expect_indeterminate(Indeterminate::Deadline);
    assert_eq!(bench.shared.credit.waiting(), 1, "it still takes room");
    bench.take();

    let (_, mut sent) = bench.submit_sent(Kind::Request);
    bench.caller.expire(bench.now + ms(10));
    sent.expect_indeterminate(Indeterminate::Deadline);
    assert_eq!(bench.caller.next_deadline(), None);
    bench.assert_over(AccountSnapshot {
        not_sent: 1,
        indeterminate: 2,
        ..account(3)
    });
}

#[test]
fn what_remains_of_a_deadline_is_told_and_never_as_none() {
    let mut bench = Bench::new();
    for (later, remaining_us) in [(ms(0), 10_000), (ms(4), 6_000)] {
        let _answer = bench.submit_waiting(Kind::Request);
        let now = bench.now + later;
        assert!(bench.load(now));
        assert_eq!(bench.take().deadline_us, remaining_us, "{later:?}");
    }
    // Less than a microsecond is told as one; nothing is sent once it has passed.
    let _answer = bench.submit_waiting(Kind::Request);
    let last = bench.now + ms(10);
    assert!(bench.load(last - Duration::from_nanos(1)));
    assert_eq!(bench.take().deadline_us, 1);
    let mut late = bench.submit_waiting(Kind::Request);
    assert!(!bench.load(last) && bench.caller.wants_load());
    bench.caller.expire(last);
    late.expect_not_sent(NotSent::Deadline);
    bench.now = last;
    bench.submit_boxed(Kind::OneWay);
    assert_eq!(bench.take().deadline_us, 0, "one-way messages have none");
}

#[test]
fn a_lost_connection_tells_what_had_left_from_what_had_not() {
    let mut bench = Bench::new();
    let (_, mut sent) = bench.submit_sent(Kind::Request);
    bench.submit_sent(Kind::OneWay);
    // Taken by the engine, which the caller has not heard of yet.
    let mut taken = bench.submit_boxed(Kind::Confirm);
    bench.submit_boxed(Kind::OneWay);
    bench.outbox.pop_front();
    bench.outbox.pop_front();
    let mut boxed = bench.submit_boxed(Kind::Request);
    bench.submit_boxed(Kind::OneWay);
    let mut waiting = bench.submit_waiting(Kind::Request);

    bench.lose_connection();
    sent.expect_indeterminate(Indeterminate::ConnectionLost);
    taken.expect_indeterminate(Indeterminate::ConnectionLost);
    boxed.expect_not_sent(NotSent::ConnectionLost);
    assert!(waiting.poll().is_none(), "it was on no connection");
    assert_eq!(bench.shared.credit.waiting(), 1);

    // It goes out on the next one.
    assert!(bench.load(bench.now));
    let correlation = bench.take().correlation;
    assert!(bench.answer(Kind::Response, correlation, b""));
    assert!(matches!(waiting.poll(), Some(Outcome::Answered(..))));
    bench.assert_over(AccountSnapshot {
        handled: 1,
        indeterminate: 2,
        not_sent: 1,
        one_way_sent: 2,
        lost: 1,
        ..account(7)
    });
}

#[test]
fn a_call_that_expired_in_the_outbox_ends_once_when_the_connection_is_lost() {
    let mut bench = Bench::new();
    let mut boxed = bench.submit_boxed(Kind::Request);
    bench.caller.expire(bench.now + ms(10));
    boxed.expect_indeterminate(Indeterminate::Deadline);
    bench.lose_connection();
    bench.assert_over(AccountSnapshot {
        indeterminate: 1,
        ..account(1)
    });
}

#[test]
fn a_full_table_refuses_calls_but_no_one_way_message() {
    let mut bench = Bench::new();
    let mut first: Vec<Answer> = (0..4)
        .map(|_| bench.submit_waiting(Kind::Request))
        .collect();
    bench
        .submit_waiting(Kind::Request)
        .expect_not_sent(NotSent::Outstanding);
    bench.submit_waiting(Kind::OneWay);
    assert_eq!(
        (bench.caller.outstanding(), bench.account().accepted),
        (4, 6)
    );
    bench.caller.expire(bench.now + ms(10));
    first
        .iter_mut()
        .for_each(|call| call.expect_not_sent(NotSent::Deadline));
    // There is room again, and the one-way message is still on its way.
    let mut next = bench.submit_boxed(Kind::Request);
    assert_eq!(bench.take().kind, Kind::OneWay);
    let correlation = bench.take().correlation;
    assert!(bench.answer(Kind::Response, correlation, b""));
    assert!(matches!(next.poll(), Some(Outcome::Answered(..))));
    bench.assert_over(AccountSnapshot {
        handled: 1,
        not_sent: 5,
        one_way_sent: 1,
        ..account(7)
    });
}

#[test]
fn what_finds_the_outbox_full_waits_and_keeps_its_place() {
    let mut bench = Bench::new();
    let mut calls: Vec<Answer> = Vec::new();
    for _ in 0..4 {
        calls.push(bench.submit_boxed(Kind::Request));
    }
    assert_eq!(bench.outbox.messages(), OUTBOX_MAX);
    assert!(bench.caller.is_sending(bench.peer));
    let first = bench.take().correlation;
    // Room has come, but the one that waits goes before the one that comes.
    bench.submit_boxed(Kind::OneWay);
    let rest = [bench.take(), bench.take(), bench.take()];
    assert!(bench.load(bench.now));
    assert_eq!(bench.take().kind, Kind::OneWay);
    let correlations = [first]
        .into_iter()
        .chain(rest.map(|header| header.correlation));
    for (correlation, call) in correlations.zip(&mut calls) {
        assert!(bench.answer(Kind::Response, correlation, b""));
        assert!(
            matches!(call.poll(), Some(Outcome::Answered(..))),
            "in order"
        );
    }
    bench.assert_over(AccountSnapshot {
        handled: 4,
        one_way_sent: 1,
        ..account(5)
    });
}

mod closing;
mod links;
mod own;
