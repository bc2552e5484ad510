//! Processes on one host: dialed by tcp, reached by ipc.

use std::fs;

use corelane::{
    Config, Runtime,
    client::Peer,
    handler::{Handler, inline, inline_raw},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::service::{Setup, echo, eventually};

/// A service that listens both ways.
struct Both {
    runtime: Runtime,
    ipc: String,
    directory: TempDir,
}

fn who(name: &'static str) -> Handler {
    inline("who", move |(): (), cx| {
        Ok((name.to_owned(), cx.shard().shard))
    })
}

impl Both {
    fn start(setup: &Setup, shards: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let ipc = format!("ipc://{}/both", directory.path().display());
        let config = setup.config(setup.serving, shards, |_| {});
        let config = config.with_oversubscribe(true);
        let last = inline_raw("last", |_, _, _| Ok(())).on_last_shard();
        let config = config.with_listen(["tcp://127.0.0.1:0", &ipc]);
        let runtime = start(config, vec![echo(), who("both"), last]);
        Self {
            runtime,
            ipc,
            directory,
        }
    }

    fn tcp(&self) -> &str {
        let tcp = self.runtime.endpoints().iter();
        let mut tcp = tcp.filter(|it| it.starts_with("tcp"));
        tcp.next().expect("it listens there")
    }
}

fn start(config: Config, handlers: Vec<Handler>) -> Runtime {
    let builder = Runtime::builder(config).handlers(handlers);
    builder.start().unwrap_or_else(|error| panic!("{error}"))
}

/// A caller that can be asked whom it has dialed.
fn caller(setup: &Setup, prefers_ipc: bool) -> Runtime {
    let config = setup.config(setup.calling, 1, |_| {});
    let config = config.with_listen(["tcp://127.0.0.1:0"]);
    start(config.with_prefer_ipc(prefers_ipc), Vec::new())
}

fn ask(caller: &Runtime, peer: &Peer) -> (String, usize) {
    let message = caller.client().message("who").json(&()).unwrap();
    message.to(peer).request().wait().unwrap()
}

/// What the caller has dialed at this endpoint.
fn dialed(caller: &Runtime, at: &str) -> Vec<Value> {
    let own = caller.client().connect(&caller.endpoints()[0]).unwrap();
    let peers = caller.client().message("_peers").to(&own).request();
    let peers: Value = serde_json::from_slice(&peers.wait().unwrap()).unwrap();
    let dialed = peers["shards"][0]["dialed"].as_array().unwrap();
    let at_it = dialed.iter().filter(|it| it["endpoint"] == at);
    at_it.cloned().collect()
}

fn via(caller: &Runtime, peer: &Peer) -> Value {
    let endpoint = peer.endpoint().unwrap().to_string();
    dialed(caller, &endpoint)[0]["via"].clone()
}

pub(crate) fn a_process_of_this_host_is_reached_by_ipc(setup: &Setup) {
    let service = Both::start(setup, 1);
    let mut events = service.runtime.events();
    let preferring = caller(setup, true);
    let peer = preferring.client().connect(service.tcp()).unwrap();
    assert_eq!(ask(&preferring, &peer), ("both".to_owned(), 0));
    assert_eq!(via(&preferring, &peer), service.ipc.as_str());
    let epochs = [(); 2].map(|()| match events.recv() {
        Some(corelane::events::Event::Up(up)) => {
            assert_eq!(up.instance, preferring.instance());
            up.epoch
        }
        other => panic!("{other:?}"),
    });
    assert!(epochs[0] < epochs[1]);
    // And back by the same way.
    let back = service
        .runtime
        .client()
        .peer(preferring.instance())
        .unwrap();
    let health = service.runtime.client().message("_health").to(&back);
    health.request().wait().unwrap();

    for (other, routed) in [(caller(setup, false), false), (caller(setup, true), true)] {
        let peer = match routed {
            false => other.client().connect(service.tcp()),
            true => other.client().connect_routed(0, service.tcp()),
        };
        let peer = peer.unwrap();
        assert_eq!(ask(&other, &peer), ("both".to_owned(), 0));
        assert_eq!(via(&other, &peer), Value::Null);
    }
}

pub(crate) fn further_shards_are_reached_by_ipc(setup: &Setup) {
    let service = Both::start(setup, 2);
    let caller = caller(setup, true);
    let peer = caller.client().connect(service.tcp()).unwrap();
    let last = caller.client().message("last").to(&peer);
    last.confirm().wait().unwrap();
    let link = dialed(&caller, &format!("{}.1", service.ipc));
    assert_eq!(link.len(), 1, "{link:?}");
    assert_eq!(
        (&link[0]["is_link"], &link[0]["state"]),
        (&true.into(), &"up".into())
    );
    assert_eq!(service.runtime.metrics().total().hopped_in, 0);
}

/// Who sits at the path is another, or nobody: then tcp it is.
pub(crate) fn only_the_same_process_will_do(setup: &Setup) {
    let service = Both::start(setup, 1);
    let path = service.directory.path().join("both");
    let caller = caller(setup, true);
    fs::remove_file(&path).unwrap();
    let peer = caller.client().connect(service.tcp()).unwrap();
    assert_eq!(ask(&caller, &peer), ("both".to_owned(), 0));
    assert_eq!(via(&caller, &peer), Value::Null);

    let config = setup.config(setup.serving, 1, |_| {});
    let other = start(config.with_listen([&service.ipc]), vec![who("other")]);
    let again = caller.client().connect(service.tcp()).unwrap();
    for _ in 0..10 {
        assert_eq!(ask(&caller, &again), ("both".to_owned(), 0));
    }
    assert_eq!(via(&caller, &again), Value::Null);
    assert_eq!(other.drain().handled, 0);
    // A file, and nobody behind it.
    fs::write(&path, "").unwrap();
    let third = caller.client().connect(service.tcp()).unwrap();
    assert_eq!(ask(&caller, &third), ("both".to_owned(), 0));
}

pub(crate) fn what_was_dialed_is_found_again(setup: &Setup) {
    let service = Both::start(setup, 1);
    let caller = caller(setup, true);
    let (tcp, ipc) = (service.tcp().to_owned(), service.ipc.clone());
    let peer = caller.client().connect(&tcp).unwrap();
    assert_eq!(ask(&caller, &peer), ("both".to_owned(), 0));
    assert_eq!(via(&caller, &peer), ipc.as_str());
    send_some(&caller, &peer);
    let Both {
        runtime,
        directory: _directory,
        ..
    } = service;
    // The next one listens by tcp alone, and the one after it both ways.
    drop(runtime);
    let again = setup.serve_again(&tcp, vec![who("tcp")]);
    assert_eq!(ask_until(&caller, &peer, "tcp"), Value::Null);
    send_some(&caller, &peer);
    drop(again);
    let config = setup.config(setup.serving, 1, |_| {});
    let config = config.with_listen([&tcp, &ipc]);
    let _third = start(config, vec![who("third")]);
    assert_eq!(ask_until(&caller, &peer, "third"), ipc.as_str());
    send_some(&caller, &peer);
}

/// One-way messages, each of which is accounted for, whichever way it went.
fn send_some(caller: &Runtime, peer: &Peer) {
    for _ in 0..10 {
        let message = caller.client().message("who").json(&()).unwrap();
        message.to(peer).one_way().unwrap();
    }
    eventually("all are accounted for", || {
        peer.account().settled() == peer.account().accepted
    });
}

/// Asks until this one answers, and says by which way.
fn ask_until(caller: &Runtime, peer: &Peer, name: &str) -> Value {
    eventually(name, || {
        let message = caller.client().message("who").json(&()).unwrap();
        let answer = message.to(peer).request::<(String, usize)>().wait();
        answer.is_ok_and(|(who, _)| who == name)
    });
    via(caller, peer)
}
