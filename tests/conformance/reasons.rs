//! Each reason of a nack that a peer can bring about (9, Unauthorized, takes CURVE).

use std::{thread, time::Duration};

use rustix::process::Signal;

use crate::{
    SERVED,
    process::Served,
    raw::{
        CONFIRM, Dealer, GOODBYE, HELLO, JSON, NACK, ONE_WAY, RAW, REQUEST, RESPONSE, header, key,
    },
};

const UNKNOWN_HANDLER: u16 = 1;
const HANDLER_FAILED: u16 = 2;
const HANDLER_PANICKED: u16 = 3;
const DEADLINE_EXCEEDED: u16 = 4;
const OVERLOADED: u16 = 5;
const DRAINING: u16 = 6;
const MALFORMED: u16 = 7;
const TOO_LARGE: u16 = 8;
const UNSUPPORTED: u16 = 10;

const MESSAGE_BYTES_MAX: usize = 1 << 20;

fn each_scheme(check: impl Fn(&mut Dealer)) {
    for (engine, scheme) in SERVED {
        let served = Served::start(&["--shards", "1", "--engine", engine]);
        let mut dealer = Dealer::connect(&served.endpoint(scheme));
        check(&mut dealer);
        // Whatever it was, the connection and the shard live on.
        let alive = dealer.ask(REQUEST, "echo", RAW, b"still there?");
        assert_eq!(alive.payload, b"still there?", "{engine} {scheme}");
    }
}

/// A server whose configuration has these limits.
fn served_with(engine: &str, limits: &str) -> (tempfile::TempDir, Served) {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("corelane.toml");
    std::fs::write(&config, format!("[limits]\n{limits}\n")).expect("a file");
    let config = config.to_str().expect("a path of text");
    let args = ["--shards", "1", "--config", config, "--engine", engine];
    let served = Served::start(&args);
    (directory, served)
}

fn assert_nack(dealer: &Dealer, correlation: u64, reason: u16) {
    let answer = dealer.answer_to(correlation);
    assert_eq!((answer.kind, answer.reason), (NACK, reason), "{answer:?}");
    assert!(!answer.payload.is_empty(), "it says why to people");
}

#[test]
fn what_the_handler_or_its_absence_makes_of_it() {
    each_scheme(|dealer| {
        for kind in [REQUEST, CONFIRM] {
            for (handler, reason) in [
                ("nobody", UNKNOWN_HANDLER),
                ("fail", HANDLER_FAILED),
                ("panic", HANDLER_PANICKED),
            ] {
                let correlation = dealer.send(kind, handler, RAW, b"");
                assert_nack(dealer, correlation, reason);
            }
        }
    });
}

/// A message's time runs from the turn that reads it, and the turn that a spin holds up began
/// before: so a second spin, which that next turn reads first, makes the last message late.
#[test]
fn a_deadline_that_passes_before_the_handler_starts() {
    each_scheme(|dealer| {
        let spin = br#"{"us":100000}"#;
        let first = dealer.send(REQUEST, "spin", JSON, spin);
        thread::sleep(Duration::from_millis(30));
        let second = dealer.send(REQUEST, "spin", JSON, spin);
        let correlation = dealer.correlation();
        let late = dealer.send_header(header(REQUEST, correlation, key("count"), RAW, 1_000), b"");
        for spun in [first, second] {
            assert_eq!(dealer.answer_to(spun).kind, RESPONSE);
        }
        assert_nack(dealer, late, DEADLINE_EXCEEDED);
        let counted = dealer.ask(REQUEST, "count.read", RAW, b"");
        assert_eq!(counted.payload, br#"{"count":0}"#, "it did not run");
    });
}

#[test]
fn more_spawned_handlers_than_the_limit() {
    for (engine, scheme) in SERVED {
        let (_config, served) = served_with(engine, "spawned_max = 2");
        let mut dealer = Dealer::connect(&served.endpoint(scheme));
        let sleeping = [(); 2].map(|()| dealer.send(REQUEST, "sleep", JSON, br#"{"ms":700}"#));
        let refused = dealer.send(REQUEST, "sleep", JSON, br#"{"ms":1}"#);
        assert_nack(&dealer, refused, OVERLOADED);
        assert_eq!(
            dealer.ask(REQUEST, "echo", RAW, b"inline").payload,
            b"inline"
        );
        for sleeping in sleeping {
            assert_eq!(dealer.answer_to(sleeping).kind, RESPONSE);
        }
        let again = dealer.ask(REQUEST, "sleep", JSON, br#"{"ms":1}"#);
        assert_eq!(again.payload, br#"{"ms":1}"#, "there is room again");
    }
}

#[test]
fn a_process_that_is_stopping() {
    for (engine, scheme) in SERVED {
        let (_config, served) = served_with(engine, "drain_ms = 30000");
        let mut dealer = Dealer::connect(&served.endpoint(scheme));
        let hello = br#"{"instance":"550e8400-e29b-41d4-a716-446655440000","versions":[2]}"#;
        let correlation = dealer.correlation();
        dealer.send_header(header(HELLO, correlation, 0, RAW, 0), hello);
        dealer.answer_to(correlation);
        let sleeping = dealer.send(REQUEST, "sleep", JSON, br#"{"ms":1500}"#);
        assert_eq!(dealer.ask(REQUEST, "echo", RAW, b"1").payload, b"1");
        served.signal(Signal::TERM);

        // Who has said hello is told.
        assert_eq!(dealer.receive().kind, GOODBYE);
        for kind in [REQUEST, CONFIRM] {
            let refused = dealer.send(kind, "echo", RAW, b"");
            assert_nack(&dealer, refused, DRAINING);
        }
        dealer.send(ONE_WAY, "count", RAW, b"");
        // What ran before is finished.
        let answer = dealer.answer_to(sleeping);
        assert_eq!(
            (answer.kind, &answer.payload[..]),
            (RESPONSE, &br#"{"ms":1500}"#[..])
        );
        let stopped = served.stopped();
        assert_eq!(
            (&stopped["handled"], &stopped["nacked"]),
            (&2.into(), &3.into())
        );
    }
}

#[test]
fn payloads_that_cannot_be_read() {
    each_scheme(|dealer| {
        let deep = [b'['; 100_000];
        for payload in [
            &b""[..],
            b"{",
            br#"{"a":1}"#,
            br#"{"a":"x","b":2}"#,
            b"\xff\xfe",
            &deep,
        ] {
            for kind in [REQUEST, CONFIRM] {
                let correlation = dealer.send(kind, "sum", JSON, payload);
                assert_nack(dealer, correlation, MALFORMED);
            }
        }
    });
}

#[test]
fn headers_that_cannot_be_read() {
    each_scheme(|dealer| {
        let mut good = || header(REQUEST, dealer.correlation(), key("echo"), RAW, 30_000_000);
        let with_kind = |mut header: Vec<u8>, kind| {
            header[3] = kind;
            header
        };
        let headers = [
            good()[..39].to_vec(),
            good()[..16].to_vec(),
            with_kind(good(), 0),
            with_kind(good(), 11),
            with_kind(good(), 255),
            // A deadline is required of what is answered.
            header(CONFIRM, 77, key("echo"), RAW, 0),
        ];
        let without_correlation = [vec![], good()[..15].to_vec(), b"XX".to_vec()];
        for header in headers {
            let correlation = dealer.send_header(header, b"");
            assert_nack(dealer, correlation, MALFORMED);
            // So that no three stand in a row, for which the connection would be closed.
            assert_eq!(dealer.ask(REQUEST, "echo", RAW, b"1").payload, b"1");
        }
        for header in without_correlation {
            dealer.send_header(header, b"");
            assert_eq!(dealer.ask(REQUEST, "echo", RAW, b"1").payload, b"1");
        }
    });
}

/// A later version may put extensions behind the forty bytes, and flags where there are none.
#[test]
fn what_later_versions_may_add_is_ignored() {
    each_scheme(|dealer| {
        let mut extended = header(REQUEST, 5, key("echo"), RAW, 30_000_000);
        extended[5] = 0b1111_1110;
        extended.extend([0xff; 100]);
        let correlation = dealer.send_header(extended, b"as ever");
        assert_eq!(dealer.answer_to(correlation).payload, b"as ever");
    });
}

#[test]
fn payloads_over_the_limit() {
    each_scheme(|dealer| {
        let largest = vec![7; MESSAGE_BYTES_MAX];
        assert!(dealer.ask(REQUEST, "echo", RAW, &largest).payload == largest);
        let correlation = dealer.send(REQUEST, "echo", RAW, &vec![7; MESSAGE_BYTES_MAX + 1]);
        assert_nack(dealer, correlation, TOO_LARGE);
    });
}

#[test]
fn codecs_and_features_that_it_does_not_have() {
    each_scheme(|dealer| {
        for (handler, codec) in [("sum", 9), ("echo", 9), ("sum", RAW)] {
            let correlation = dealer.send(REQUEST, handler, codec, br#"{"a":1,"b":2}"#);
            assert_nack(dealer, correlation, UNSUPPORTED);
        }
        let mut compressed = header(REQUEST, 6, key("echo"), RAW, 30_000_000);
        compressed[5] = 1;
        compressed[36] = 1;
        let correlation = dealer.send_header(compressed, b"\x10x");
        assert_nack(dealer, correlation, UNSUPPORTED);
    });
}
