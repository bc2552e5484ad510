//! A thousand connections that are lost at once, and come back at once.

#[path = "native_engine/descriptors.rs"]
mod descriptors;

use std::{
    thread,
    time::{Duration, Instant},
};

use corelane::{
    Config, Runtime,
    client::Peer,
    config::{EngineKind, IdleStrategy, LimitsConfig},
    error::{CallError, Indeterminate},
    handler::{inline_raw, spawned},
};

const CONNECTIONS: usize = 1_000;
/// Both ends of each, and everything else.
const DESCRIPTORS_MIN: u64 = 2 * CONNECTIONS as u64 + 500;
/// Far beyond what any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(limits: impl FnOnce(&mut LimitsConfig)) -> Config {
    Config::default()
        .with_engine(EngineKind::Native)
        .with_shards(1)
        .with_idle(IdleStrategy::Park)
        .with_limits(|it| {
            it.deadline_ms = PATIENCE.as_millis() as u64;
            limits(it);
        })
}

fn serve(endpoint: &str) -> Runtime {
    let echo = inline_raw("echo", |payload, reply, _| {
        reply.extend_from_slice(payload);
        Ok(())
    });
    let hold = spawned("hold", |(): (), cx| async move {
        cx.sleep(2 * PATIENCE).await;
        Ok(())
    });
    // Far fewer may be in their handshake at once than come.
    let config = config(|limits| limits.unauthenticated_max = 32);
    let config = config.with_listen([endpoint]);
    let begun = Instant::now();
    loop {
        let builder = Runtime::builder(config.clone());
        match builder.handlers([echo.clone(), hold.clone()]).start() {
            Ok(runtime) => return runtime,
            // Between two lives its port is anybody's.
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// One call by each connection. All are answered, each with its own.
fn ask_all(caller: &Runtime, peers: &[Peer]) {
    let calls: Vec<_> = (0_u64..)
        .zip(peers)
        .map(|(n, peer)| {
            let payload = n.to_le_bytes().to_vec();
            let message = caller.client().message("echo").raw(payload).to(peer);
            message.request().send().expect("has room")
        })
        .collect();
    for (n, call) in (0_u64..).zip(calls) {
        assert_eq!(call.wait().as_deref(), Ok(&n.to_le_bytes()[..]));
    }
}

fn connected(caller: &Runtime, peer: &Peer) -> u64 {
    let message = caller.client().message("_peers").json_text("{}").to(peer);
    let answer = message.request().wait().expect("is answered");
    let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
    answer["shards"][0]["accepted_total"]
        .as_u64()
        .expect("a count")
}

#[test]
fn a_thousand_connections_that_are_lost_at_once_come_back() {
    let maximum = descriptors::raise_limit();
    if maximum.is_some_and(|maximum| maximum < DESCRIPTORS_MIN) {
        eprintln!("SKIPPED: only {maximum:?} descriptors; raise `ulimit -Hn` to {DESCRIPTORS_MIN}");
        return;
    }
    let mut service = serve("tcp://127.0.0.1:0");
    let endpoint = service.endpoints()[0].clone();
    let config = config(|limits| limits.inbox_capacity = 4 * CONNECTIONS as u64);
    let caller = Runtime::builder(config).start().expect("starts");
    let client = caller.client();
    let connect = |_| client.connect(&endpoint).expect("an endpoint");
    let peers: Vec<Peer> = (0..CONNECTIONS).map(connect).collect();
    ask_all(&caller, &peers);
    for round in 0..3 {
        assert_eq!(connected(&caller, &peers[0]), CONNECTIONS as u64);
        let held: Vec<_> = peers
            .iter()
            .map(|peer| {
                let message = client.message("hold").json(&()).expect("is JSON");
                message.to(peer).request::<()>().send().expect("has room")
            })
            .collect();
        // They are there once what was sent behind them is answered.
        ask_all(&caller, &peers);
        drop(service);
        let lost = Err(CallError::Indeterminate(Indeterminate::ConnectionLost));
        for call in held {
            assert_eq!(call.wait(), lost);
        }
        service = serve(&endpoint);
        let begun = Instant::now();
        ask_all(&caller, &peers);
        println!("round {round}: all were back after {:.0?}", begun.elapsed());
    }
    for peer in &peers {
        let account = peer.account();
        assert_eq!(account.indeterminate, 3, "{account:?}");
        assert_eq!(account.settled(), account.accepted, "{account:?}");
    }
    assert_eq!(caller.metrics().total().late_answers, 0);
    let counters = service.metrics().total();
    assert_eq!(counters.malformed, 0, "{counters:?}");
}
