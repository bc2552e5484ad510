//! Peers, as a program knows them: events.

use corelane::{
    Runtime,
    config::EngineKind,
    error::Lost,
    events::{Departure, Event, NoEvent, PeerInfo, Subscription},
    wire::{Header, Hello, Kind},
};
use uuid::Uuid;

use crate::service::{PATIENCE, Service, Setup, echo};

fn next(events: &mut Subscription) -> Event {
    events.recv_timeout(PATIENCE).expect("an event")
}

/// The next event, which is of a peer that is there.
#[track_caller]
fn next_up(events: &mut Subscription) -> PeerInfo {
    match next(events) {
        Event::Up(peer) => peer,
        other => panic!("no `Up`: {other:?}"),
    }
}

/// A dealer that has said hello as this instance, and was welcomed.
fn introduce(service: &Service, instance: Uuid) -> zmq::Socket {
    let dealer = service.raw_dealer();
    say_hello(&dealer, instance);
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
