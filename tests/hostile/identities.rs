//! Who says to be whom: two live peers with one identity, and a server that comes back with the
//! identity that it had.

use std::{
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use corelane::{
    Runtime,
    error::{CallError, Indeterminate},
    wire::{Header, Kind},
};

use crate::{
    PATIENCE, ask, called, caller,
    plain::{COMMAND, MORE, Plain, Said, frame, greeting},
    request, serve, serve_one,
};

const INSTANCE: &str = r#"{"instance":"550e8400-e29b-41d4-a716-446655440000","versions":[2]}"#;

/// READY with an identity of ZMTP's own, too.
fn ready_as(socket_type: &str, identity: &str) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type), ("Identity", identity)] {
        body.push(name.len() as u8);
        body.extend(name.as_bytes());
        body.extend((value.len() as u32).to_be_bytes());
        body.extend(value.as_bytes());
    }
    frame(COMMAND, &body)
}

fn control(kind: Kind, correlation: u64, body: &str) -> Vec<u8> {
    let header = Header::new(kind, correlation);
    [frame(MORE, &header.encode()), frame(0, body.as_bytes())].concat()
}

/// Everything that it says of itself is the same as another says.
fn twin(service: &Runtime) -> Plain {
    let mut plain = Plain::connect(&service.endpoints()[0].parse().unwrap());
    let hello = control(Kind::Hello, 0, INSTANCE);
    plain.write(&[greeting(1), ready_as("DEALER", "twin"), hello].concat());
    plain
}

/// What answers this correlation.
fn answer_to(plain: &mut Plain, correlation: u64) -> Vec<u8> {
    let began = Instant::now();
    loop {
        for said in plain.take_all() {
            if let Said::Message(answered, payload) = said {
                // Correlation 0: its welcome.
                if answered != 0 {
                    assert_eq!(answered, correlation);
                    return payload;
                }
            }
        }
        assert!(began.elapsed() < PATIENCE && !plain.is_closed, "no answer");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A peer is its connection, and no more than that depends on its name: each of two has its own
/// answers, to the same correlations, and is not touched by the other's end.
#[test]
fn two_live_peers_with_one_identity_have_each_their_own_answers() {
    let service = serve();
    let mut twins = [twin(&service), twin(&service)];
    for correlation in 1..=50 {
        for (name, twin) in [b"one", b"two"].into_iter().zip(&mut twins) {
            twin.write(&request(correlation, name));
        }
        for (name, twin) in [b"one", b"two"].into_iter().zip(&mut twins) {
            assert_eq!(answer_to(twin, correlation), name);
        }
    }
    let [first, mut second] = twins;
    drop(first);
    let good = caller();
    let peer = good.client().connect(&service.endpoints()[0]).unwrap();
    (0..100).for_each(|n| ask(&good, &peer, n));
    second.write(&request(51, b"alone"));
    assert_eq!(answer_to(&mut second, 51), b"alone");
}

/// It answers on its new connection what was asked on the old one: nobody waits for that any more,
/// and no other call is taken for it.
#[test]
fn stale_answers_of_a_server_that_came_back_are_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("tcp://{}", listener.local_addr().unwrap());
    let caller = caller();
    let peer = caller.client().connect(&at).unwrap();
    let call = || {
        let message = caller.client().message("echo").raw("x").to(&peer);
        message.request().within(PATIENCE).send().unwrap()
    };
    let mut stale = Vec::new();
    let mut late = 0;
    for _ in 0..5 {
        let ((mut server, correlation), asked) = serve_one(&listener, call);
        server.write(&control(Kind::Welcome, 0, INSTANCE));
        // What it was asked before, and did not answer then.
        for &old in &stale {
            assert_ne!(correlation, old);
            server.write(&control(Kind::Response, old, "stale"));
        }
        // And an answer that comes twice.
        server.write(&control(Kind::Response, correlation, "right"));
        server.write(&control(Kind::Response, correlation, "again"));
        assert_eq!(asked.wait().as_deref(), Ok(&b"right"[..]));
        late += stale.len() as u64 + 1;
        let unanswered = call();
        stale.push(called(&mut server));
        let began = Instant::now();
        while caller.metrics().total().late_answers < late {
            assert!(began.elapsed() < PATIENCE, "they are not all dropped");
            thread::sleep(Duration::from_millis(1));
        }
        drop(server);
        let lost = Err(CallError::Indeterminate(Indeterminate::ConnectionLost));
        assert_eq!(unanswered.wait(), lost);
    }
    assert_eq!(caller.metrics().total().late_answers, late);
    let account = peer.account();
    assert_eq!((account.handled, account.indeterminate), (5, 5));
}
