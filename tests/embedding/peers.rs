//! Peers, as a program knows them: events, and calls by the connections that they have made.

use std::{sync::mpsc, time::Duration};

use bytes::Bytes;
use corelane::{
    Runtime,
    client::{ConnectError, KnownPeer, Peer},
    config::EngineKind,
    error::{CallError, Indeterminate, Lost, NotSent},
    events::{Departure, Event, NoEvent, PeerInfo, Subscription},
    handler::{Handler, blocking, inline, inline_raw, inline_with, spawned, spawned_raw},
    wire::{HandlerKey, Header, Hello, Kind, Reason},
};
use uuid::Uuid;

use crate::service::{PATIENCE, Service, Setup, echo, eventually, sleep};

pub(crate) fn next(events: &mut Subscription) -> Event {
    events.recv_timeout(PATIENCE).expect("an event")
}

/// The next event, which is of a peer that is there.
#[track_caller]
pub(crate) fn next_up(events: &mut Subscription) -> PeerInfo {
    match next(events) {
        Event::Up(peer) => peer,
        other => panic!("no `Up`: {other:?}"),
    }
}

/// A dealer that has said hello as this instance, and was welcomed.
fn introduce(service: &Service, instance: Uuid) -> zmq::Socket {
    let dealer = service.raw_dealer();
    say_hello(&dealer, instance);
    // The directory may have been looked at by another just then.
    eventually("it is known", || {
        known(&service.runtime, instance).is_some()
    });
    dealer
}

fn say_hello(dealer: &zmq::Socket, instance: Uuid) {
    let header = Header::new(Kind::Hello, 1).encode();
    let hello = Hello::of_instance(instance).encode();
    dealer.send_multipart([&header[..], &hello], 0).unwrap();
    let welcome = dealer.recv_multipart(0).unwrap();
    assert_eq!(Header::decode(&welcome[0]).unwrap().kind, Kind::Welcome);
}

pub(crate) fn peers_that_come_drain_and_go_are_events(setup: &Setup) {
    let service = setup.serve(vec![echo()]);
    let mut at_service = service.runtime.events();
    let caller = setup.caller();
    let mut at_caller = caller.events();
    assert_eq!(at_caller.try_recv(), Err(NoEvent::Yet));
    let peer = service.connect(&caller);

    let accepted = next_up(&mut at_service);
    let endpoint = Some(service.endpoint.clone());
    assert_eq!(accepted.instance, caller.instance());
    assert_eq!((&accepted.endpoint, accepted.shard), (&None, 0));
    let dialed = next_up(&mut at_caller);
    assert_eq!(dialed.instance, service.runtime.instance());
    assert_eq!((&dialed.endpoint, dialed.shard), (&endpoint, 0));

    let Service {
        runtime,
        endpoint,
        directory: _directory,
    } = service;
    runtime.drain();
    // Its end is the end of what it tells; what its peer sees comes in this order.
    let is_gone = |event: &Event| matches!(event, Event::Down { .. });
    let told: Vec<Event> = std::iter::from_fn(|| at_service.recv()).collect();
    assert!(told.iter().all(is_gone), "{told:?}");
    assert_eq!(at_service.try_recv(), Err(NoEvent::Ended));
    assert_eq!(next(&mut at_caller), Event::Draining(dialed.clone()));
    assert_eq!(expect_lost(next(&mut at_caller)), dialed);

    // Another process where it was: the same handle, a later epoch.
    let again = setup.serve_again(&endpoint, vec![echo()]);
    let back = next_up(&mut at_caller);
    assert_eq!(back.instance, again.instance());
    assert!(back.epoch > dialed.epoch, "{back:?}");
    let mut at_again = again.events();
    drop(peer);
    let reason = Departure::LetGo;
    assert_eq!(next(&mut at_caller), Event::Down { peer: back, reason });
    if setup.serving == EngineKind::Native {
        let peer = expect_lost(next(&mut at_again));
        assert_eq!(peer.instance, caller.instance());
    }
    stop(caller, &mut at_caller);
}

fn expect_lost(event: Event) -> PeerInfo {
    match event {
        Event::Down {
            peer,
            reason: Departure::Lost(Lost::Closed | Lost::Broken(_)),
        } => peer,
        other => panic!("not lost: {other:?}"),
    }
}

fn stop(runtime: Runtime, events: &mut Subscription) {
    drop(runtime);
    assert_eq!(events.recv(), None);
}

/// Whatever it calls itself then; and it says goodbye once.
pub(crate) fn who_says_hello_again_is_the_same_peer(setup: &Setup) {
    let service = setup.serve(vec![echo()]);
    let mut events = service.runtime.events();
    let first = Uuid::from_u128(1);
    let dealer = introduce(&service, first);
    for other in 2..5 {
        say_hello(&dealer, Uuid::from_u128(other));
    }
    assert_eq!(next_up(&mut events).instance, first);
    let second = Uuid::from_u128(9);
    let _other = introduce(&service, second);
    assert_eq!(next_up(&mut events).instance, second);

    let goodbye = Header::new(Kind::Goodbye, 0).encode();
    for _ in 0..100 {
        dealer.send_multipart([&goodbye[..], b""], 0).unwrap();
    }
    let third = Uuid::from_u128(10);
    let _third = introduce(&service, third);
    // Each dealer has its own connection: the goodbyes may come before or after the third hello.
    let mut told = [next(&mut events), next(&mut events)];
    told.sort_by_key(|event| matches!(event, Event::Up(_)));
    let instance = match &told {
        [Event::Draining(draining), Event::Up(up)] => (draining.instance, up.instance),
        other => panic!("{other:?}"),
    };
    assert_eq!(instance, (first, third));
}

/// A runtime that calls, and serves whom it calls: it does not listen.
pub(crate) fn called_back(setup: &Setup, handlers: Vec<Handler>) -> Runtime {
    let config = setup.config(setup.calling, 1, |_| {});
    let builder = Runtime::builder(config).handlers(handlers);
    builder.start().unwrap_or_else(|error| panic!("{error}"))
}

fn known(runtime: &Runtime, instance: Uuid) -> Option<KnownPeer> {
    let peers = runtime.client().peers();
    peers.into_iter().find(|it| it.instance == instance)
}

/// Reads what a dealer is sent, and answers it.
fn answer(dealer: &zmq::Socket) -> Vec<u8> {
    loop {
        let [header, payload] = &dealer.recv_multipart(0).unwrap()[..] else {
            panic!("not two frames");
        };
        let header = Header::decode(header).unwrap();
        if header.kind == Kind::Goodbye {
            continue;
        }
        if header.kind == Kind::Request {
            let response = Header {
                codec: header.codec,
                ..Header::new(Kind::Response, header.correlation)
            };
            dealer
                .send_multipart([&response.encode()[..], payload], 0)
                .unwrap();
        }
        return payload.clone();
    }
}

pub(crate) fn ask(runtime: &Runtime, peer: &Peer, text: &'static str) -> Result<Bytes, CallError> {
    let message = runtime.client().message("echo").raw(text).to(peer);
    message.request().wait()
}

pub(crate) fn a_handler_calls_its_caller_back(setup: &Setup) {
    let knock = inline("knock", |n: u64, cx| {
        let peer = cx.peer()?;
        assert!(cx.caller().is_some() && peer.endpoint().is_none());
        cx.client().message("heard").json(&n)?.to(&peer).one_way()?;
        Ok(n)
    });
    let ask = spawned("ask", |text: String, cx| async move {
        let peer = cx.peer()?;
        let message = cx.client().message("double").json(&text)?.to(&peer);
        let twice: String = message.request().await?;
        Ok((cx.caller(), twice))
    });
    let block = blocking("block", |text: String, cx| {
        let peer = cx.peer()?;
        let message = cx.client().message("double").json(&text)?.to(&peer);
        Ok((cx.caller(), message.request::<String>().wait()?))
    });
    let service = setup.serve_blocking(vec![knock, ask, block], (1, 10), |_| {});
    let (say, heard) = mpsc::channel();
    let heard_by = inline_with("heard", move |_| {
        let say = say.clone();
        move |n: u64, _cx| Ok(say.send(n)?)
    });
    let double = inline("double", |text: String, _cx| Ok(format!("{text}{text}")));
    let caller = called_back(setup, vec![heard_by, double]);
    let peer = service.connect(&caller);
    let request = |handler: &str, text: &str| {
        let message = caller.client().message(handler).json(text).unwrap();
        message.to(&peer).request::<(Option<Uuid>, String)>().wait()
    };
    let expected = (Some(caller.instance()), "abab".to_owned());
    for handler in ["ask", "block"] {
        assert_eq!(request(handler, "ab"), Ok(expected.clone()), "{handler}");
    }
    for n in 0..50_u64 {
        let message = caller.client().message("knock").json(&n).unwrap();
        assert_eq!(message.to(&peer).request::<u64>().wait(), Ok(n));
    }
    for n in 0..50 {
        assert_eq!(heard.recv_timeout(PATIENCE), Ok(n), "in their order");
    }
    // Who is called back over the connection that it was called on is known, too.
    let totals = caller.drain();
    assert_eq!((totals.accepted, totals.handled), (52, 52));
    drop(service);
}

pub(crate) fn a_peer_that_has_connected_is_called_by_instance(setup: &Setup) {
    let service = setup.serve(vec![echo()]);
    let client = service.runtime.client().clone();
    let caller = called_back(setup, vec![echo(), sleep()]);
    let instance = caller.instance();
    assert!(matches!(client.peer(instance), Err(ConnectError::Unknown(it)) if it == instance));
    let mut events = service.runtime.events();
    let dialed = service.connect(&caller);
    let up = next_up(&mut events);
    // Who is told of it finds it.
    let found = known(&service.runtime, instance).expect("is known");
    assert_eq!((found.connections, found.shards), (vec![up.clone()], 1));
    let peer = client.peer(instance).unwrap();
    assert_eq!((peer.endpoint(), peer.shard()), (None, 0));
    assert_eq!(
        ask(&service.runtime, &peer, "there"),
        Ok(Bytes::from("there"))
    );
    client.message("echo").to(&peer).confirm().wait().unwrap();
    // All handles are one; one may come while the last one goes.
    for n in 0..200_u64 {
        drop(client.peer(instance).unwrap());
        let again = client.peer(instance).unwrap();
        let message = client.message("echo").json(&n).unwrap().to(&again);
        assert_eq!(message.request::<u64>().wait(), Ok(n));
    }
    assert_eq!(peer.account().handled, 202);
    drop(peer);
    for n in 0..200_u64 {
        let again = client.peer(instance).unwrap();
        let message = client.message("echo").json(&n).unwrap().to(&again);
        assert_eq!(message.request::<u64>().wait(), Ok(n));
    }
    let peer = client.peer(instance).unwrap();
    assert_eq!(peer.account().handled, 402, "one account");

    // The caller, too, finds whom it has dialed.
    let same = caller.client().peer(service.runtime.instance()).unwrap();
    assert_eq!(same.endpoint(), dialed.endpoint());
    drop(same);

    // What is under way as the connection ends ends with it, and what follows comes back.
    let nap = client.message("sleep").json(&60_000).unwrap().to(&peer);
    let within = match setup.serving {
        EngineKind::Native => PATIENCE,
        // Libzmq does not learn of it.
        _ => Duration::from_millis(500),
    };
    let nap = nap.request::<u64>().within(within).send().unwrap();
    ask(&service.runtime, &peer, "behind it").unwrap();
    drop(dialed);
    let why = match setup.serving {
        EngineKind::Native => Indeterminate::ConnectionLost,
        _ => Indeterminate::Deadline,
    };
    assert_eq!(nap.wait(), Err(CallError::Indeterminate(why)));
    eventually("it is not connected", || {
        let refused = ask(&service.runtime, &peer, "gone");
        let refused = refused.expect_err("nobody is there");
        match refused {
            CallError::NotSent(error) => {
                assert_eq!(error.payload, "gone");
                error.why == NotSent::NotConnected
            }
            other => panic!("{other}"),
        }
    });
    assert_eq!(known(&service.runtime, instance), None);
    assert!(matches!(
        client.peer(instance),
        Err(ConnectError::Unknown(_))
    ));
    let Event::Down { peer: down, .. } = next(&mut events) else {
        panic!("no `Down`");
    };
    assert_eq!(down, up);

    // It is back: the same handle, a later epoch.
    let _dialed = service.connect(&caller);
    let back = next_up(&mut events);
    assert!(back.instance == instance && back.epoch > up.epoch);
    assert_eq!(
        ask(&service.runtime, &peer, "back"),
        Ok(Bytes::from("back"))
    );
    let account = peer.account();
    assert_eq!(account.accepted, account.settled(), "{account:?}");
}

pub(crate) fn of_two_with_one_identity_the_later_is_sent_to(setup: &Setup) {
    let service = setup.serve(vec![echo()]);
    let client = service.runtime.client();
    let mut events = service.runtime.events();
    let instance = Uuid::from_u128(77);
    let first = introduce(&service, instance);
    let peer = client.peer(instance).unwrap();
    let one = next_up(&mut events);
    let call = |text: &'static str| {
        let message = client.message("any").raw(text).to(&peer);
        message.request().send().unwrap()
    };
    let before = call("one");
    assert_eq!(answer(&first), b"one");
    assert_eq!(before.wait(), Ok(Bytes::from("one")));
    let outstanding = call("two");
    // It is on its way to the first one when the second comes.
    let sent = first.recv_multipart(0).unwrap();
    let second = introduce(&service, instance);
    let two = next_up(&mut events);
    assert!(one.instance == two.instance && two.epoch > one.epoch);
    let [found] = &client.peers()[..] else {
        panic!("they are one peer");
    };
    assert_eq!(found.connections, std::slice::from_ref(&two));
    let later = call("three");
    assert_eq!(answer(&second), b"three");
    assert_eq!(later.wait(), Ok(Bytes::from("three")));
    // Another's answer to it is none; its own is.
    let header = Header::decode(&sent[0]).unwrap();
    let response = Header::new(Kind::Response, header.correlation).encode();
    second.send_multipart([&response[..], b"false"], 0).unwrap();
    say_hello(&second, instance);
    first.send_multipart([&response[..], b"true"], 0).unwrap();
    assert_eq!(outstanding.wait(), Ok(Bytes::from("true")));
    assert_eq!(service.runtime.metrics().total().late_answers, 1);

    // The one that is left is sent to again.
    drop(second);
    let soon = Duration::from_millis(300);
    let mut is_back = false;
    first.set_rcvtimeo(soon.as_millis() as i32).unwrap();
    eventually("it goes to the first", || {
        let call = client.message("any").raw("four").to(&peer);
        let call = call.request().send().unwrap();
        if let Ok(frames) = first.recv_multipart(0) {
            is_back = frames[1] == b"four";
        }
        drop(call);
        is_back
    });
    assert_eq!(expect_lost(next(&mut events)), two);
}

/// Its message arrives at one shard and runs on another, which has no connection to it.
pub(crate) fn a_caller_is_known_on_the_shard_that_runs_it(setup: &Setup) {
    let back = inline_raw("back", |payload, _reply, cx| {
        let peer = cx.peer()?;
        let message = cx.client().message("any").raw_copy(payload);
        Ok(message.to(&peer).one_way()?)
    });
    let who = spawned_raw("who", |_payload, cx| async move {
        let caller = cx.caller().map(|it| it.to_string());
        Ok(Bytes::from(caller.unwrap_or_default()))
    });
    let handlers = vec![back.on_shard(1), who.on_shard(1)];
    let service = setup.serve_oversubscribed(2, handlers);
    let instance = Uuid::from_u128(5);
    let dealer = introduce(&service, instance);
    let stranger = service.raw_dealer();
    let send = |dealer: &zmq::Socket, kind: Kind, name: &str, payload: &[u8]| {
        let header = Header {
            handler: HandlerKey::of(name),
            deadline_us: 10_000_000,
            ..Header::new(kind, 3)
        };
        let frames = [&header.encode()[..], payload];
        dealer.send_multipart(frames, 0).unwrap();
    };
    for bytes in [0, 100, 40_000] {
        let payload = vec![7; bytes];
        send(&dealer, Kind::OneWay, "back", &payload);
        assert_eq!(answer(&dealer), payload);
        send(&dealer, Kind::Request, "who", &payload);
        assert_eq!(answer(&dealer), instance.to_string().as_bytes());
        send(&stranger, Kind::Request, "who", &payload);
        assert_eq!(answer(&stranger), b"");
    }
    send(&stranger, Kind::Confirm, "back", b"");
    let nack = stranger.recv_multipart(0).unwrap();
    let header = Header::decode(&nack[0]).unwrap();
    assert_eq!(
        (header.kind, header.reason),
        (Kind::Nack, Reason::HandlerFailed)
    );
}

pub(crate) fn a_peer_that_drains_is_sent_nothing_new(setup: &Setup) {
    let service = setup.serve(vec![echo()]);
    let client = service.runtime.client();
    let instance = Uuid::from_u128(3);
    let dealer = introduce(&service, instance);
    let peer = client.peer(instance).unwrap();
    let call = client.message("any").raw("before").to(&peer).request();
    let call = call.send().unwrap();
    let sent = dealer.recv_multipart(0).unwrap();
    let goodbye = Header::new(Kind::Goodbye, 0).encode();
    dealer.send_multipart([&goodbye[..], b""], 0).unwrap();
    say_hello(&dealer, instance);
    let refused = client.message("any").raw("after").to(&peer).request();
    match refused.wait() {
        Err(CallError::NotSent(error)) => assert_eq!(error.why, NotSent::Draining),
        other => panic!("{other:?}"),
    }
    // What it has it answers.
    let header = Header::decode(&sent[0]).unwrap();
    let response = Header::new(Kind::Response, header.correlation).encode();
    dealer.send_multipart([&response[..], b"still"], 0).unwrap();
    assert_eq!(call.wait(), Ok(Bytes::from("still")));
}

pub(crate) fn a_call_to_a_peer_that_is_cut_off_ends_then(setup: &Setup) {
    let service = setup.serve(vec![echo()]);
    let client = service.runtime.client();
    let mut events = service.runtime.events();
    let instance = Uuid::from_u128(4);
    let dealer = introduce(&service, instance);
    let up = next_up(&mut events);
    let peer = client.peer(instance).unwrap();
    let call = client.message("any").raw("call").to(&peer).request();
    let call = call.send().unwrap();
    dealer.recv_multipart(0).unwrap();
    for _ in 0..3 {
        dealer
            .send_multipart([b"no header".to_vec(), Vec::new()], 0)
            .unwrap();
    }
    let ended = CallError::Indeterminate(Indeterminate::ConnectionLost);
    assert_eq!(call.wait(), Err(ended));
    let reason = Departure::Unreadable;
    assert_eq!(next(&mut events), Event::Down { peer: up, reason });
    match ask(&service.runtime, &peer, "more") {
        Err(CallError::NotSent(error)) => assert_eq!(error.why, NotSent::NotConnected),
        other => panic!("{other:?}"),
    }
}
