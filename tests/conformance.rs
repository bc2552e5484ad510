//! `corelane serve` held to the wire's description from outside: by peers that share no code with
//! the library.
//!
//! One is a raw DEALER, here, with headers written byte by byte: it always runs. The other is the
//! Python in `tests/conformance/` and `examples/python_client.py`; it runs where there is pyzmq,
//! and says so where there is none.

#[path = "cli/process.rs"]
#[allow(dead_code)] // made for tests/cli.rs
mod process;
#[path = "conformance/raw.rs"]
mod raw;
#[path = "conformance/reasons.rs"]
mod reasons;
#[path = "conformance/shards.rs"]
mod shards;

use std::{
    io::{self, Write},
    path::Path,
    process::{Command, Output},
};

use process::Served;
use raw::{ACK, CONFIRM, Dealer, HELLO, JSON, NACK, ONE_WAY, RAW, REQUEST, RESPONSE, WELCOME};
use serde_json::Value;

/// What serves, and over what.
const SERVED: [(&str, &str); 4] = [
    ("native", "tcp"),
    ("native", "ipc"),
    ("libzmq", "tcp"),
    ("libzmq", "ipc"),
];

/// Handler, codec, payload, and what a request brings: these bytes, or a nack for this reason with
/// this text.
type Expected = Result<&'static [u8], (u16, &'static str)>;
const HANDLERS: [(&str, u8, &[u8], Expected); 14] = [
    ("echo", RAW, b"", Ok(b"")),
    ("echo", RAW, b"\x00any bytes\xff", Ok(b"\x00any bytes\xff")),
    ("echo", raw::POSTCARD, b"\x01", Ok(b"\x01")),
    ("sum", JSON, br#"{"a":1,"b":2}"#, Ok(br#"{"total":3}"#)),
    ("sum", raw::POSTCARD, b"\x02\x04", Ok(b"\x06")), // zigzag: 1 and 2 make 3
    ("count", RAW, b"counted", Ok(b"")),
    ("count.read", JSON, b"{}", Ok(br#"{"count":1}"#)),
    ("count.read", RAW, b"", Ok(br#"{"count":1}"#)),
    ("fail", RAW, b"", Err((2, "asked to fail"))),
    ("fail", JSON, b"{}", Err((2, "asked to fail"))),
    ("panic", RAW, b"", Err((3, "asked to panic"))),
    ("spin", JSON, br#"{"us":50}"#, Ok(br#"{"us":50}"#)),
    ("sleep", JSON, br#"{"ms":1}"#, Ok(br#"{"ms":1}"#)),
    (
        "nobody",
        RAW,
        b"",
        Err((1, "no handler has the key 1d3b7e9137dffe1e")),
    ),
];

#[test]
fn a_request_is_answered_by_a_response_or_a_nack() {
    for (engine, scheme) in SERVED {
        let served = Served::start(&["--shards", "1", "--engine", engine]);
        let mut dealer = Dealer::connect(&served.endpoint(scheme));
        for (handler, codec, payload, expected) in HANDLERS {
            let answer = dealer.ask(REQUEST, handler, codec, payload);
            let what = format!("{engine} {scheme} {handler} {codec}: {answer:?}");
            match expected {
                Ok(reply) => {
                    assert_eq!(
                        (answer.kind, answer.codec, answer.reason),
                        (RESPONSE, codec, 0),
                        "{what}"
                    );
                    assert_eq!(answer.payload, reply, "{what}");
                }
                Err((reason, text)) => {
                    assert_eq!((answer.kind, answer.reason), (NACK, reason), "{what}");
                    assert_eq!(answer.payload, text.as_bytes(), "{what}");
                }
            }
        }
        let place = dealer.ask(REQUEST, "where", JSON, b"{}");
        let keys = br#"{"shard":0,"cpu":"#;
        assert!(place.payload.starts_with(keys), "{place:?}");
        let place: Value = serde_json::from_slice(&place.payload).expect("JSON");
        assert_eq!(place["cpu"], served.ready["shards"][0]["cpu"]);
    }
}

#[test]
fn a_confirm_is_answered_by_an_empty_ack_or_a_nack() {
    for (engine, scheme) in SERVED {
        let served = Served::start(&["--shards", "1", "--engine", engine]);
        let mut dealer = Dealer::connect(&served.endpoint(scheme));
        for (handler, codec, payload, expected) in HANDLERS {
            let answer = dealer.ask(CONFIRM, handler, codec, payload);
            let what = format!("{engine} {scheme} {handler} {codec}: {answer:?}");
            match expected {
                Ok(_) => {
                    assert_eq!((answer.kind, answer.reason), (ACK, 0), "{what}");
                    assert!(answer.payload.is_empty(), "{what}");
                }
                Err((reason, text)) => {
                    assert_eq!((answer.kind, answer.reason), (NACK, reason), "{what}");
                    assert_eq!(answer.payload, text.as_bytes(), "{what}");
                }
            }
        }
    }
}

/// Answers come in the order of inline messages, so one to a one-way message would come first.
#[test]
fn a_one_way_message_is_handled_and_never_answered() {
    for (engine, scheme) in SERVED {
        let served = Served::start(&["--shards", "1", "--engine", engine]);
        let mut dealer = Dealer::connect(&served.endpoint(scheme));
        for (handler, codec, payload, _) in HANDLERS {
            dealer.send(ONE_WAY, handler, codec, payload);
        }
        dealer.send(ONE_WAY, "sum", JSON, b"no json");
        let counted = dealer.ask(REQUEST, "count.read", RAW, b"");
        assert_eq!(counted.payload, br#"{"count":1}"#);
        dealer.stays_quiet();
        let stopped = served.stop();
        let nacked = HANDLERS
            .iter()
            .filter(|(.., expected)| expected.is_err())
            .count()
            + 1;
        assert_eq!(stopped["nacked"], nacked);
        assert_eq!(stopped["accepted"], HANDLERS.len() + 2);
    }
}

#[test]
fn hello_is_answered_by_welcome() {
    for (engine, scheme) in SERVED {
        let served = Served::start(&["--shards", "1", "--engine", engine]);
        let mut dealer = Dealer::connect(&served.endpoint(scheme));
        let hello = br#"{"instance":"550e8400-e29b-41d4-a716-446655440000","versions":[2],"x":[]}"#;
        let correlation = dealer.send_header(raw::header(HELLO, u64::MAX, 0, RAW, 0), hello);
        let answer = dealer.receive();
        assert_eq!((answer.kind, answer.correlation), (WELCOME, correlation));
        let welcome: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert_eq!(welcome["instance"], served.ready["instance"]);
        assert_eq!(welcome["endpoints"], served.ready["endpoints"]);
        assert_eq!(
            (&welcome["versions"], &welcome["shards"]),
            (&[2].into(), &1.into())
        );
        assert_eq!(
            welcome["codecs"],
            process::json(&["raw", "json", "postcard"])
        );
        assert!(welcome["features"].is_array() && welcome["host"].is_string());
        let handlers = welcome["handlers"].as_array().expect("handlers");
        assert_eq!(handlers.len(), 12);
        assert_eq!(
            (&welcome["shard"], &welcome["route_map"]),
            (&0.into(), &"splitmix64".into())
        );
        for handler in handlers {
            let name = handler["name"].as_str().expect("a name");
            assert_eq!(handler["key"], format!("{:016x}", raw::key(name)));
            let affinity = match name {
                "where.one" => "shard:0",
                "where.key" => "key",
                _ => "local",
            };
            assert_eq!(handler["affinity"], affinity);
        }
    }
}

#[test]
fn python_peers_agree() {
    if !has_python("import zmq") {
        return skip("tests/conformance/peer.py and examples/python_client.py: no pyzmq");
    }
    for (engine, scheme) in SERVED {
        let served = Served::start(&["--engine", engine]);
        for script in ["examples/python_client.py", "tests/conformance/peer.py"] {
            let output = python(script, &[&served.endpoint(scheme)]);
            let stdout = String::from_utf8_lossy(&output.stdout);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success(),
                "{engine} {script}:\n{stdout}\n{stderr}"
            );
        }
        served.stop();
    }
}

/// Whether there is a Python that can do this.
fn has_python(what: &str) -> bool {
    let asked = Command::new("python3").args(["-c", what]).output();
    asked.is_ok_and(|output| output.status.success())
}

fn skip(what: &str) {
    // Not by a macro, which the test harness would hold back.
    let line = format!("SKIPPED {what}\n");
    io::stderr().write_all(line.as_bytes()).expect("stderr");
}

fn python(script: &str, args: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::new("python3")
        .arg(root.join(script))
        .args(args)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3 can be run")
}
