//! What each message is answered with, whatever its handler does.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use super::*;
use crate::handler::failure::NACK_BYTES_MAX;
use crate::{
    client::{CallerLimits, CallingSide, Client, ClientOptions},
    codec::Decoder,
    handler::{
        Handler, HandlerError, blocking_raw, inline, inline_in_place, inline_raw, inline_with,
        spawned, spawned_raw,
    },
    route::inbox,
    wire::{HandlerKey, PayloadWriter},
};

const REPLY_BYTES_MAX: usize = 100;

/// A shard's worth of what handlers need, and one connection's outbox.
struct Bench {
    registry: Registry,
    shard: Rc<ShardInfo>,
    client: LocalClient,
    timers: Rc<Timers>,
    outbox: Outbox,
    now: Instant,
    may_spawn: bool,
}

impl Bench {
    fn new(handlers: &[Handler]) -> Self {
        let clock = quanta::Clock::new();
        let shard = ShardInfo {
            shards: 1,
            shard: 3,
            cpu: 5,
            numa_node: 1,
        };
        let options = ClientOptions {
            message_bytes_max: 1 << 20,
            outgoing_messages_max: 10,
            outgoing_bytes_max: 1 << 20,
            deadline: Duration::from_secs(1),
        };
        let client = Client::new(Vec::new(), clock.clone(), options);
        let (_, asked) = inbox(1, &Arc::default());
        let limits = CallerLimits {
            outstanding_max: 10,
            messages_max: 10,
            bytes_max: 1 << 20,
        };
        Self {
            registry: Registry::new(handlers, &shard),
            shard: Rc::new(shard),
            client: LocalClient::new(3, Rc::new(CallingSide::new(limits, 10, asked)), client),
            now: clock.now(),
            timers: Rc::new(Timers::new(clock)),
            outbox: Outbox::new(2, 1 << 20),
            may_spawn: true,
        }
    }

    fn dispatch(&mut self, header: Header, payload: &[u8]) -> Dispatch {
        let deadline = match header.deadline_us {
            0 => None,
            us => Some(self.now + Duration::from_micros(us.into())),
        };
        self.dispatch_by(header, payload, deadline)
    }

    fn dispatch_by(
        &mut self,
        header: Header,
        payload: &[u8],
        deadline: Option<Instant>,
    ) -> Dispatch {
        let mut payload = payload.to_vec();
        self.dispatch_message(header, &mut Received::apart(&[], &mut payload), deadline)
    }

    fn dispatch_message(
        &mut self,
        header: Header,
        message: &mut Received<'_>,
        deadline: Option<Instant>,
    ) -> Dispatch {
        let arrival = Arrival {
            header,
            message,
            outbox: &mut self.outbox,
            deadline,
            now: self.now,
        };
        let lent = Lent {
            shard: &self.shard,
            client: &self.client,
            asker: &None,
            timers: &self.timers,
            may_spawn: self.may_spawn,
            reply_bytes_max: REPLY_BYTES_MAX,
        };
        self.registry.dispatch(arrival, &lent)
    }

    /// Dispatches in each of the three modes, and returns how a request was answered. A confirm
    /// must be answered alike, with a nack or an empty ack, and a one-way message not at all.
    #[track_caller]
    fn ask(&mut self, name: &str, codec: Codec, payload: &[u8]) -> (Header, Vec<u8>) {
        let header = |kind| Header {
            codec,
            ..request(kind, name)
        };
        let one_way = self.dispatch(header(Kind::OneWay), payload);
        assert!(self.outbox.is_empty(), "one-way messages have no answer");
        assert_eq!(self.outbox.bytes(), 0);
        let requested = self.dispatch(header(Kind::Request), payload);
        assert_eq!(format!("{one_way:?}"), format!("{requested:?}"));
        let (reply, text) = self.answer();
        let confirmed = self.dispatch(header(Kind::Confirm), payload);
        assert_eq!(format!("{confirmed:?}"), format!("{requested:?}"));
        let (ack, ack_text) = self.answer();
        if reply.kind == Kind::Nack {
            assert_eq!((ack, &ack_text), (reply, &text));
        } else {
            assert_eq!((ack.kind, ack_text.len()), (Kind::Ack, 0));
        }
        assert_eq!((reply.correlation, ack.correlation), (77, 77));
        assert_eq!(reply.handler.get(), 0);
        (reply, text)
    }

    #[track_caller]
    fn expect_nack(&mut self, name: &str, codec: Codec, payload: &[u8], reason: Reason) -> String {
        let (header, text) = self.ask(name, codec, payload);
        assert_eq!((header.kind, header.reason), (Kind::Nack, reason));
        String::from_utf8(text).unwrap()
    }

    /// Takes the only answer out of the outbox.
    #[track_caller]
    fn answer(&mut self) -> (Header, Vec<u8>) {
        assert_eq!(self.outbox.messages(), 1);
        let front = self.outbox.front().unwrap();
        let answer = (
            Header::decode(front.header).unwrap(),
            front.payload.to_vec(),
        );
        self.outbox.pop_front();
        answer
    }

    /// Runs a task to its end and returns its answer.
    fn run(&mut self, dispatch: Dispatch) -> (Header, Vec<u8>) {
        let Dispatch::Spawn(Spawning { header, future, .. }) = dispatch else {
            panic!("{dispatch:?}")
        };
        let result = futures_lite::future::block_on(future);
        Spawning::answer(&header, &result, &mut self.outbox).unwrap();
        self.answer()
    }
}

fn request(kind: Kind, name: &str) -> Header {
    Header {
        handler: HandlerKey::of(name),
        deadline_us: if kind == Kind::OneWay { 0 } else { 1_000 },
        ..Header::new(kind, 77)
    }
}

fn echo() -> Handler {
    inline_raw("echo", |payload, reply, _| {
        reply.extend_from_slice(payload);
        Ok(())
    })
}

#[test]
fn a_reply_comes_in_the_codec_of_its_request() {
    let mut bench = Bench::new(&[
        echo(),
        inline("double", |n: u64, _| Ok(2 * n)),
        inline_in_place("reverse", |payload, _| {
            payload.reverse();
            Ok(2)
        }),
    ]);
    let (header, reply) = bench.ask("double", Codec::Json, b"21");
    assert_eq!((header.kind, header.codec), (Kind::Response, Codec::Json));
    assert_eq!(reply, b"42");
    let (header, reply) = bench.ask("double", Codec::Postcard, &[21]);
    assert_eq!((header.codec, reply), (Codec::Postcard, vec![42]));
    let (header, reply) = bench.ask("echo", Codec::Raw, b"bytes");
    assert_eq!(
        (header.codec, &reply[..]),
        (Codec::Raw, b"bytes".as_slice())
    );
    let (_, reply) = bench.ask("reverse", Codec::Raw, b"abc");
    assert_eq!(reply, b"cb", "as many bytes as it says, from the beginning");
}

/// Three bytes a character, so that the bound falls into one.
#[test]
fn a_text_of_any_length_is_cut_between_two_characters() {
    let fail = |_: &[u8], _: &mut PayloadWriter<'_>, _: &mut Context<'_>| {
        Err(HandlerError::new("€".repeat(100_000)))
    };
    let mut bench = Bench::new(&[inline_raw("fail", fail)]);
    let text = bench.expect_nack("fail", Codec::Raw, b"", Reason::HandlerFailed);
    assert_eq!(text, "€".repeat(NACK_BYTES_MAX / 3));
}

#[test]
fn errors_and_panics_are_nacks_without_what_was_written_before() {
    let mut bench = Bench::new(&[
        inline_raw("fail", |_, reply, _| {
            reply.extend_from_slice(b"half a reply");
            Err(HandlerError::new("asked to"))
        }),
        inline_raw("panic", |_, reply, _| {
            reply.extend_from_slice(b"half a reply");
            resume_unwind(Box::new("static text"))
        }),
        inline_raw("panic.owned", |_, _, _| {
            resume_unwind(Box::new("text".to_owned()))
        }),
        inline_raw("panic.odd", |_, _, _| resume_unwind(Box::new(7))),
        echo(),
    ]);
    let failed = Reason::HandlerFailed;
    assert_eq!(
        bench.expect_nack("fail", Codec::Raw, b"", failed),
        "asked to"
    );
    let panicked = Reason::HandlerPanicked;
    for (name, text) in [
        ("panic", "static text"),
        ("panic.owned", "text"),
        ("panic.odd", "the handler panicked"),
    ] {
        assert_eq!(bench.expect_nack(name, Codec::Raw, b"", panicked), text);
    }
    assert_eq!(bench.ask("echo", Codec::Raw, b"goes on").1, b"goes on");
}

#[test]
fn a_panic_leaves_the_handlers_own_state_as_it_was_then() {
    let counting = inline_with("count", |_| {
        let mut count = 0;
        move |panics: bool, _: &mut Context<'_>| {
            count += 1;
            if panics {
                resume_unwind(Box::new("now"));
            }
            Ok(count)
        }
    });
    let mut bench = Bench::new(&[counting]);
    bench.expect_nack("count", Codec::Json, b"true", Reason::HandlerPanicked);
    // Three modes each time.
    assert_eq!(bench.ask("count", Codec::Json, b"false").1, b"5");
}

#[test]
fn what_cannot_be_served_says_why() {
    let mut bench = Bench::new(&[inline("double", |n: u64, _| Ok(2 * n)), echo()]);
    let unknown = bench.expect_nack("nobody", Codec::Raw, b"", Reason::UnknownHandler);
    assert!(
        unknown.contains(&HandlerKey::of("nobody").to_string()),
        "{unknown}"
    );
    bench.expect_nack("double", Codec::Raw, b"21", Reason::Unsupported);
    bench.expect_nack("double", Codec::Unknown(9), b"21", Reason::Unsupported);
    bench.expect_nack("echo", Codec::Unknown(9), b"", Reason::Unsupported);
    let malformed = bench.expect_nack("double", Codec::Json, b"{", Reason::Malformed);
    assert!(malformed.contains("json"), "{malformed}");
    bench.expect_nack("double", Codec::Postcard, b"", Reason::Malformed);

    let compressed = Header {
        flags: Flags::COMPRESSED,
        ..request(Kind::Request, "echo")
    };
    let refused = bench.dispatch(compressed, b"");
    assert!(matches!(
        refused,
        Dispatch::Nacked(None, Reason::Unsupported)
    ));
    assert_eq!(bench.answer().0.reason, Reason::Unsupported);
}

#[test]
fn a_deadline_is_required_and_kept_but_for_one_way_messages() {
    let mut bench = Bench::new(&[echo()]);
    let now = bench.now;
    for (deadline, reason) in [
        (None, Some(Reason::Malformed)),
        (Some(now), Some(Reason::DeadlineExceeded)),
        (
            Some(now - Duration::from_nanos(1)),
            Some(Reason::DeadlineExceeded),
        ),
        (Some(now + Duration::from_nanos(1)), None),
    ] {
        for kind in [Kind::Request, Kind::Confirm] {
            bench.dispatch_by(request(kind, "echo"), b"x", deadline);
            let (answer, _) = bench.answer();
            let nacked = (answer.kind == Kind::Nack).then_some(answer.reason);
            assert_eq!(nacked, reason, "{deadline:?}");
        }
    }
    let one_way = bench.dispatch(request(Kind::OneWay, "echo"), b"x");
    assert!(matches!(one_way, Dispatch::Handled(0)));
}

#[test]
fn nothing_runs_that_could_not_be_answered() {
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = runs.clone();
    let handler = inline_raw("count", move |_, _, _| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    });
    let mut bench = Bench::new(&[handler]);
    while bench.outbox.push(&Header::new(Kind::Ack, 0), b"").is_ok() {}
    let bytes = bench.outbox.bytes();
    for name in ["count", "nobody"] {
        let dispatched = bench.dispatch(request(Kind::Request, name), b"");
        assert!(matches!(dispatched, Dispatch::NoRoom), "{dispatched:?}");
    }
    assert_eq!(runs.load(std::sync::atomic::Ordering::Relaxed), 0);
    let one_way = bench.dispatch(request(Kind::OneWay, "count"), b"");
    assert!(matches!(one_way, Dispatch::Handled(0)), "it needs no room");
    assert_eq!(bench.outbox.bytes(), bytes);
}

#[test]
fn a_reply_over_the_limit_is_a_nack_that_names_the_limit() {
    let mut bench = Bench::new(&[
        echo(),
        inline_in_place("lie", |payload, _| Ok(payload.len() + 1)),
        spawned_raw("later", |payload, _| async { Ok(payload) }),
    ]);
    let most = [7; REPLY_BYTES_MAX];
    assert_eq!(bench.ask("echo", Codec::Raw, &most).1, most);
    let more = [7; REPLY_BYTES_MAX + 1];
    let text = bench.expect_nack("echo", Codec::Raw, &more, Reason::HandlerFailed);
    assert!(text.contains("limits.message_bytes_max"), "{text}");
    bench.expect_nack("lie", Codec::Raw, b"abc", Reason::HandlerFailed);

    let spawned = bench.dispatch(request(Kind::Request, "later"), &more);
    assert_eq!(bench.run(spawned).0.reason, Reason::HandlerFailed);
}

#[test]
fn a_handler_knows_where_it_runs_and_for_whom() {
    let seen = inline("see", |(): (), cx: &mut Context<'_>| {
        let remaining = cx
            .deadline()
            .map(|it| it.duration_since(cx.now()).as_micros());
        Ok((
            cx.shard().shard,
            cx.route_key(),
            remaining,
            cx.wants_reply(),
        ))
    });
    let mut bench = Bench::new(&[seen]);
    let header = Header {
        codec: Codec::Json,
        route_key: 9,
        ..request(Kind::Request, "see")
    };
    bench.dispatch(header, b"null");
    assert_eq!(bench.answer().1, b"[3,9,1000,true]");
}

#[test]
fn a_task_answers_with_its_reply_its_error_or_its_panic() {
    let mut bench = Bench::new(&[
        spawned("double", |n: u64, _| async move {
            match n {
                0 => Err(HandlerError::new("nothing to double")),
                1 => resume_unwind(Box::new("one")),
                n => Ok(2 * n),
            }
        }),
        spawned_raw("early", |_, _| -> std::future::Ready<_> {
            resume_unwind(Box::new("before its future"))
        }),
    ]);
    let json = |payload: &'static [u8]| {
        let header = Header {
            codec: Codec::Json,
            ..request(Kind::Request, "double")
        };
        (header, payload)
    };
    for (payload, kind, reason, text) in [
        (
            b"21".as_slice(),
            Kind::Response,
            Reason::None,
            b"42".as_slice(),
        ),
        (
            b"0",
            Kind::Nack,
            Reason::HandlerFailed,
            b"nothing to double",
        ),
        (b"1", Kind::Nack, Reason::HandlerPanicked, b"one"),
    ] {
        let (header, payload) = json(payload);
        let spawned = bench.dispatch(header, payload);
        assert!(bench.outbox.is_empty(), "it is answered when it ends");
        let (answer, answer_text) = bench.run(spawned);
        assert_eq!((answer.kind, answer.reason), (kind, reason));
        assert_eq!(answer_text, text);
    }
    bench.expect_nack("double", Codec::Json, b"\"x\"", Reason::Malformed);
    let early = bench.expect_nack("early", Codec::Raw, b"", Reason::HandlerPanicked);
    assert_eq!(early, "before its future");
    bench.may_spawn = false;
    bench.expect_nack("early", Codec::Raw, b"", Reason::Overloaded);
}

#[test]
fn a_tasks_answer_waits_for_room_and_is_an_ack_for_a_confirm() {
    let mut bench = Bench::new(&[spawned_raw("echo", |payload, _| async { Ok(payload) })]);
    let reply = Ok(Bytes::from_static(b"reply"));
    let confirm = request(Kind::Confirm, "echo");
    while bench.outbox.push(&Header::new(Kind::Ack, 0), b"").is_ok() {}
    assert!(Spawning::answer(&confirm, &reply, &mut bench.outbox).is_err());
    let one_way = request(Kind::OneWay, "echo");
    assert!(Spawning::answer(&one_way, &reply, &mut bench.outbox).is_ok());
    bench.outbox.clear();
    assert!(Spawning::answer(&confirm, &reply, &mut bench.outbox).is_ok());
    let (ack, payload) = bench.answer();
    assert_eq!((ack.kind, payload.len()), (Kind::Ack, 0));
}

#[test]
fn a_large_reply_of_a_task_leaves_from_where_it_is() {
    let mut bench = Bench::new(&[]);
    for bytes in [ATTACHED_BYTES_MIN - 1, ATTACHED_BYTES_MIN] {
        let reply = Bytes::from(vec![7; bytes]);
        let header = request(Kind::Request, "echo");
        Spawning::answer(&header, &Ok(reply.clone()), &mut bench.outbox).unwrap();
        let front = bench.outbox.front().unwrap();
        assert_eq!(front.payload, reply);
        let is_same = front.payload.as_ptr() == reply.as_ptr();
        assert_eq!(is_same, bytes == ATTACHED_BYTES_MIN);
        bench.outbox.pop_front();
    }
}

#[test]
fn a_blocking_call_takes_the_buffer_of_a_large_payload_to_any_thread() {
    let mut bench = Bench::new(&[blocking_raw("see", |payload, cx| {
        let seen = (payload.as_ptr() as usize, cx.shard().shard, cx.route_key());
        Ok(format!("{seen:?}").into())
    })]);
    let header = Header {
        route_key: 9,
        ..request(Kind::Request, "see")
    };
    let deadline = bench.now + Duration::from_millis(1);
    let (end, mut taken) = (40 + ATTACHED_BYTES_MIN, false);
    let mut buffer = vec![7; end];
    let pointer = buffer.as_ptr() as usize;
    let mut message = Received::within(&mut buffer, 0..40, 40..end, &mut taken);
    let dispatched = bench.dispatch_message(header, &mut message, Some(deadline));
    let Dispatch::Block(mut call) = dispatched else {
        panic!("{dispatched:?}")
    };
    assert!(bench.outbox.is_empty(), "it is answered when it ends");
    assert_eq!(message.payload_bytes(), ATTACHED_BYTES_MIN, "it is there");
    call.take_payload(&mut message);
    assert_eq!(call.lateness(bench.now), None);
    let late = call.lateness(deadline).expect("it is too late");
    assert_eq!(late.reason, Reason::DeadlineExceeded);
    let run = std::thread::spawn(move || call.run(&mut Decoder::new()));
    let seen = (pointer + 40, 3, 9);
    assert_eq!(run.join().unwrap(), Ok(format!("{seen:?}").into()));
}
