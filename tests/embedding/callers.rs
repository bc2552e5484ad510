//! Processes that have connected: what they are told by their own connections, and tell.

use std::{sync::mpsc, thread};

use bytes::Bytes;
use corelane::{
    error::{CallError, NotSent},
    events::Event,
    handler::{inline_raw, inline_with},
};

use crate::{
    peers::{ask, called_back, next, next_up},
    service::{PATIENCE, Setup, echo, sleep},
};

pub(crate) fn a_caller_that_drains_says_so_to_whom_it_has_dialed(setup: &Setup) {
    let service = setup.serve(vec![echo()]);
    let client = service.runtime.client();
    let mut events = service.runtime.events();
    let caller = called_back(setup, vec![echo(), sleep()]);
    let _dialed = service.connect(&caller);
    let up = next_up(&mut events);
    let peer = client.peer(up.instance).unwrap();
    // It drains for as long as it has this to answer.
    let nap = client.message("sleep").json(&1_500).unwrap().to(&peer);
    let nap = nap.request::<u64>().within(PATIENCE).send().unwrap();
    ask(&service.runtime, &peer, "behind it").unwrap();
    let draining = thread::spawn(move || caller.drain());
    assert_eq!(next(&mut events), Event::Draining(up));
    match ask(&service.runtime, &peer, "after") {
        Err(CallError::NotSent(error)) => {
            assert_eq!(
                (error.why, error.payload),
                (NotSent::Draining, "after".into())
            );
        }
        other => panic!("{other:?}"),
    }
    nap.wait().unwrap();
    assert_eq!(draining.join().unwrap().handled, 2);
}

pub(crate) fn a_further_shard_that_sends_back_is_known(setup: &Setup) {
    let knock = inline_raw("knock", |_, _, cx| {
        let peer = cx.peer()?;
        let message = cx.client().message("heard").json(&())?;
        Ok(message.to(&peer).one_way()?)
    });
    let service = setup.serve_oversubscribed(2, vec![knock.on_shard(1)]);
    let (say, heard) = mpsc::channel();
    let hears = inline_with("heard", move |_| {
        let say = say.clone();
        move |(): (), cx| Ok(say.send(cx.caller())?)
    });
    let caller = called_back(setup, vec![hears]);
    let peer = service.connect(&caller);
    for _ in 0..3 {
        let knock = caller.client().message("knock").raw(Bytes::new()).to(&peer);
        knock.confirm().wait().unwrap();
        let by = heard.recv_timeout(PATIENCE).unwrap();
        assert_eq!(by, Some(service.runtime.instance()));
    }
    assert_eq!(service.runtime.metrics().total().hopped_in, 0);
}
