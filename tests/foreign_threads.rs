//! The client that is `Send`, from threads that are no shards: how peers spread, what a full inbox
//! says, how often a shard is woken, and that every call resolves once, whatever ends first.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    task::Wake,
    thread,
    time::{Duration, Instant},
};

use corelane::{
    Config, Runtime,
    client::{Client, ConnectError, Peer},
    config::{IdleStrategy, LimitsConfig},
    error::{CallError, Indeterminate, NotSent},
    handler::{inline, spawned},
    route::{Doorbell, inbox},
};

/// Far beyond what any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

/// A service of one shard.
fn serve() -> Runtime {
    let sleep = spawned("sleep", |ms: u64, cx| async move {
        cx.sleep(Duration::from_millis(ms)).await;
        Ok(ms)
    });
    let config = config(1, |_| {}).with_listen(["tcp://127.0.0.1:0"]);
    Runtime::builder(config)
        .handler(inline("next", |n: u64, _| Ok(n + 1)))
        .handler(sleep)
        .start()
        .expect("a service")
}

/// A runtime that only calls.
fn caller(shards: usize, limits: impl FnOnce(&mut LimitsConfig)) -> Runtime {
    let config = config(shards, limits);
    Runtime::builder(config).start().expect("a caller")
}

fn config(shards: usize, limits: impl FnOnce(&mut LimitsConfig)) -> Config {
    Config::default()
        .with_shards(shards)
        // The tests share the CPUs.
        .with_idle(IdleStrategy::Park)
        .with_limits(|it| {
            it.deadline_ms = PATIENCE.as_millis() as u64;
            limits(it);
        })
}

/// Two, if there are CPUs for them.
fn shards() -> usize {
    let topology = corelane::placement::probe().expect("a topology");
    topology.usable_ids().len().min(2)
}

fn ask(client: &Client, peer: &Peer, n: u64) -> Result<u64, CallError> {
    client.message("next").json(&n)?.to(peer).request().wait()
}

/// Keeps a shard from running until it is dropped.
struct Hold {
    _release: mpsc::Sender<()>,
}

impl Hold {
    fn on(runtime: &Runtime, shard: usize) -> Self {
        let (release, released) = mpsc::channel::<()>();
        let (entered, is_entered) = mpsc::channel();
        drop(runtime.run_on(shard, move |_| async move {
            let _ = entered.send(());
            let _ = released.recv();
        }));
        is_entered.recv_timeout(PATIENCE).expect("it runs");
        Self { _release: release }
    }
}

#[test]
fn peers_spread_over_the_shards_in_turn_or_stay_where_they_are_put() {
    let (service, caller) = (serve(), caller(shards(), |_| {}));
    let client = caller.client();
    let endpoint = &service.endpoints()[0];
    let spread: Vec<Peer> = (0..2 * shards())
        .map(|_| client.connect(endpoint).expect("an endpoint"))
        .collect();
    for (nth, peer) in spread.iter().enumerate() {
        assert_eq!(peer.shard(), nth % shards());
    }
    let calls = |shard: usize| caller.metrics().shards()[shard].calls;
    for shard in 0..shards() {
        let before = calls(shard);
        for n in 0..3 {
            let peer = client.connect_from(shard, endpoint).expect("an endpoint");
            assert_eq!(peer.shard(), shard);
            assert_eq!(ask(client, &peer, n), Ok(n + 1));
        }
        assert_eq!(calls(shard), before + 3, "the shard named sends them");
    }
    for (nth, peer) in spread.iter().enumerate() {
        let before = calls(nth % shards());
        assert_eq!(ask(client, peer, 7), Ok(8));
        assert_eq!(calls(nth % shards()), before + 1);
    }
}

#[test]
fn a_full_inbox_gives_the_payload_back() {
    const CAPACITY: u64 = 4;
    let service = serve();
    let caller = caller(1, |limits| limits.inbox_capacity = CAPACITY);
    let (client, endpoint) = (caller.client(), &service.endpoints()[0]);
    let peer = client.connect(endpoint).expect("an endpoint");
    assert_eq!(ask(client, &peer, 0), Ok(1));

    let hold = Hold::on(&caller, 0);
    let mut calls = Vec::new();
    for n in 0..CAPACITY {
        let message = client.message("next").json(&n).unwrap();
        calls.push(message.to(&peer).request::<u64>().send().expect("room"));
    }
    let text = b"back, please";
    let raw = || client.message("next").raw(&text[..]).to(&peer);
    let refused = raw().one_way().unwrap_err();
    assert_eq!(
        (refused.why, &refused.payload[..]),
        (NotSent::Full, &text[..])
    );
    let refused = raw().confirm().send().unwrap_err();
    assert_eq!(
        (refused.why, &refused.payload[..]),
        (NotSent::Full, &text[..])
    );
    match raw().request().wait() {
        Err(CallError::NotSent(refused)) => {
            assert_eq!(
                (refused.why, &refused.payload[..]),
                (NotSent::Full, &text[..])
            );
        }
        other => panic!("{other:?}"),
    }
    // Connections have an inbox of their own, of the same size.
    let connect = || client.connect(endpoint);
    let peers: Vec<Peer> = (0..CAPACITY).map(|_| connect().expect("room")).collect();
    let refused = connect().unwrap_err();
    assert_eq!(refused, ConnectError::NotAccepted(NotSent::Full));

    drop(hold);
    for (n, call) in (0..).zip(calls) {
        assert_eq!(call.wait(), Ok(n + 1), "what was accepted is sent");
    }
    for peer in &peers {
        assert_eq!(ask(client, peer, 1), Ok(2));
    }
    assert_eq!(service.drain().handled, 1 + CAPACITY + CAPACITY);
}

/// Told exactly, where nothing else rings: a reader that is parked and does not get to run.
#[test]
fn only_the_first_message_wakes() {
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    const MESSAGES: usize = 1_000;
    const THREADS: usize = 4;
    let (doorbell, count) = (Arc::new(Doorbell::default()), Arc::new(Count::default()));
    let (port, inbox) = inbox(THREADS * MESSAGES, &doorbell);
    for round in 1..=3 {
        doorbell.prepare_to_park(&count.clone().into());
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| (0..MESSAGES).for_each(|n| port.try_send(n).expect("room")));
            }
        });
        assert_eq!(count.0.load(Relaxed), round);
        assert!(doorbell.leave(), "it was woken");
        let taken = std::iter::from_fn(|| inbox.pop()).count();
        assert_eq!(taken, THREADS * MESSAGES);
    }
}

/// Not once per message: while it is kept from running, it counts as awake.
#[test]
fn a_shard_is_woken_once_for_many_messages() {
    const MESSAGES: u64 = 500;
    let (service, caller) = (serve(), caller(1, |_| {}));
    let client = caller.client();
    let peer = client
        .connect(&service.endpoints()[0])
        .expect("an endpoint");
    assert_eq!(ask(client, &peer, 0), Ok(1));
    let before = caller.metrics().total().woken;
    let hold = Hold::on(&caller, 0);
    let calls = (0..MESSAGES).map(|n| {
        let message = client.message("next").json(&n).unwrap();
        message.to(&peer).request::<u64>().send().expect("room")
    });
    let calls: Vec<_> = calls.collect();
    drop(hold);
    for (n, call) in (0..).zip(calls) {
        assert_eq!(call.wait(), Ok(n + 1));
    }
    // By the hold, and by who asks for this, if it slept by then.
    let woken = caller.metrics().total().woken - before;
    assert!(woken <= 2, "{woken} times for {MESSAGES} messages");
    // One after the other, it sleeps between them.
    let deadline = Instant::now() + PATIENCE;
    while caller.metrics().total().woken == before + woken {
        assert!(Instant::now() < deadline, "it is never woken");
        assert_eq!(ask(client, &peer, 1), Ok(2));
    }
}

#[test]
fn calls_of_many_threads_resolve_each_once() {
    const THREADS: u64 = 4;
    const MESSAGES: u64 = 600;
    const UNDER_WAY: u64 = 20;
    let (service, caller) = (serve(), caller(shards(), |_| {}));
    let client = caller.client();
    let connect = |_| {
        client
            .connect(&service.endpoints()[0])
            .expect("an endpoint")
    };
    let peers: Vec<Peer> = (0..shards()).map(connect).collect();
    let told: Vec<BTreeSet<u64>> = thread::scope(|scope| {
        let threads = (0..THREADS).map(|thread| {
            let peers = &peers;
            scope.spawn(move || {
                let mut told = BTreeSet::new();
                let first = thread * MESSAGES;
                for from in (first..first + MESSAGES).step_by(UNDER_WAY as usize) {
                    let calls = (from..from + UNDER_WAY).map(|n| {
                        let message = client.message("next").postcard(&n).unwrap();
                        let peer = &peers[n as usize % peers.len()];
                        message.to(peer).request::<u64>().send().expect("room")
                    });
                    let calls: Vec<_> = calls.collect();
                    for (n, call) in (from..).zip(calls) {
                        // Every other by its future, on an executor that knows of no shard.
                        let reply = match n % 2 {
                            0 => call.wait(),
                            _ => futures_lite::future::block_on(call),
                        };
                        assert_eq!(reply, Ok(n + 1));
                        assert!(told.insert(n));
                    }
                }
                told
            })
        });
        let threads: Vec<_> = threads.collect();
        threads
            .into_iter()
            .map(|it| it.join().expect("no panic"))
            .collect()
    });
    let told: BTreeSet<u64> = told.into_iter().flatten().collect();
    assert!(told.into_iter().eq(0..THREADS * MESSAGES));
    let counters = caller.metrics().total();
    assert_eq!(
        (counters.calls, counters.answered),
        (THREADS * MESSAGES, THREADS * MESSAGES)
    );
    assert_eq!(service.drain().handled, THREADS * MESSAGES);
}

/// Those that nobody waits for any more are taken back or cancelled, or their answers are taken;
/// each ends once, and they trouble nobody.
#[test]
fn calls_may_be_dropped_while_they_are_under_way() {
    const CALLS: u64 = 200;
    let (service, caller) = (serve(), caller(1, |_| {}));
    let client = caller.client();
    let peer = client
        .connect(&service.endpoints()[0])
        .expect("an endpoint");
    let calls = (0..CALLS).map(|n| {
        let message = client.message("sleep").json(&(n % 50)).unwrap();
        message.to(&peer).request::<u64>().send().expect("room")
    });
    let calls: Vec<_> = calls.collect();
    for (n, call) in (0..CALLS).zip(calls) {
        match n % 2 {
            0 => drop(call),
            _ => assert_eq!(call.wait(), Ok(n % 50)),
        }
    }
    assert_eq!(ask(client, &peer, 1), Ok(2));
    // The connection outlives its handle until all is answered.
    drop(peer);
    let deadline = Instant::now() + PATIENCE;
    let counters = loop {
        let counters = caller.metrics().total();
        let unanswered = counters.call_nacked + counters.call_indeterminate + counters.not_sent;
        if counters.answered + unanswered == CALLS + 1 {
            break counters;
        }
        assert!(Instant::now() < deadline, "{counters:?}");
        thread::sleep(Duration::from_millis(2));
    };
    assert_eq!(counters.calls, CALLS + 1);
    assert!(counters.answered > CALLS / 2, "{counters:?}");
    let totals = service.drain();
    assert!(totals.handled > CALLS / 2, "{totals:?}");
    let ended = totals.handled + totals.nacked + totals.indeterminate + totals.lost;
    assert_eq!(totals.accepted, ended, "{totals:?}");
}

/// Threads that go on are told so by each call, and none of them waits for ever.
#[test]
fn a_runtime_may_be_dropped_under_the_threads_that_use_it() {
    const THREADS: usize = 4;
    for round in 0..5 {
        let (service, caller) = (serve(), caller(shards(), |_| {}));
        let client = caller.client().clone();
        let are_under_way = Arc::new(AtomicBool::new(false));
        let (ended, ends) = mpsc::channel();
        for thread in 0..THREADS {
            let client = caller.client().clone();
            let peer = client
                .connect(&service.endpoints()[0])
                .expect("an endpoint");
            let (are_under_way, ended) = (are_under_way.clone(), ended.clone());
            thread::spawn(move || {
                let answered = submit_until_closed(&client, &peer, thread, &are_under_way);
                let _ = ended.send(answered);
            });
        }
        drop(ended);
        let deadline = Instant::now() + PATIENCE;
        while !are_under_way.load(Relaxed) {
            assert!(Instant::now() < deadline, "nothing was answered");
            thread::yield_now();
        }
        drop(caller);
        let answered = (0..THREADS).map(|_| {
            let end = ends.recv_timeout(PATIENCE);
            end.unwrap_or_else(|why| panic!("round {round}: a thread hangs or failed: {why}"))
        });
        assert!(answered.sum::<u64>() > 0);
        let refused = client.connect(&service.endpoints()[0]).unwrap_err();
        assert_eq!(refused, ConnectError::NotAccepted(NotSent::Closed));
    }
}

/// Returns how many calls were answered before the runtime had ended.
fn submit_until_closed(client: &Client, peer: &Peer, thread: usize, answered: &AtomicBool) -> u64 {
    let mut replies = 0;
    for n in 0.. {
        let message = client.message("next").json(&n).unwrap().to(peer);
        let refused = match (thread + n as usize).is_multiple_of(4) {
            true => message.one_way().err().map(CallError::NotSent),
            false => message.request::<u64>().wait().map(|_| replies += 1).err(),
        };
        answered.fetch_or(replies > 0, Relaxed);
        match refused {
            None => {}
            Some(CallError::Indeterminate(Indeterminate::Stopped)) => {}
            Some(CallError::NotSent(refused)) => match refused.why {
                NotSent::Closed => break,
                NotSent::Full => thread::yield_now(),
                why => panic!("{why:?}"),
            },
            Some(other) => panic!("{other:?}"),
        }
    }
    // A shard that stops refuses calls before its inbox is gone.
    let payload = loop {
        match client.message("next").raw("x").to(peer).one_way() {
            Err(refused) if refused.why == NotSent::Closed => break refused.payload,
            _ => thread::yield_now(),
        }
    };
    assert_eq!(payload, b"x"[..]);
    replies
}

/// A shard that never parks, whether or not it has anything else to do, hears of what its tasks
/// await elsewhere: left to itself, glommio would look for that every 100 ms.
#[test]
fn a_shard_that_never_parks_hears_what_its_tasks_await() {
    // Of so many, the third best is compared: the machine may have no CPU for the others.
    const WAITS: usize = 9;
    const SOON: Duration = Duration::from_millis(25);
    type Wait = fn() -> LocalWait;
    let kinds: [(&str, Wait); 3] = [
        ("another thread", || Box::pin(another_thread())),
        ("a task of a task", || {
            Box::pin(async { glommio::spawn_local(another_thread()).await })
        }),
        ("glommio's timer", || {
            Box::pin(async {
                let begun = Instant::now();
                glommio::timer::sleep(Duration::from_millis(1)).await;
                begun + Duration::from_millis(1)
            })
        }),
    ];
    let third_best = |idle, is_busy, wait: Wait| {
        let caller = start_idling(idle);
        let peer = caller
            .client()
            .connect(&caller.endpoints()[0])
            .expect("an endpoint");
        let (say, said) = mpsc::channel();
        let _running = caller.run_on(0, move |cx| async move {
            let mut late = Vec::new();
            while late.len() < WAITS {
                let waiting = async {
                    let ready_at = wait().await;
                    ready_at.elapsed()
                };
                let calling = async {
                    loop {
                        let message = cx.client().message("next").json(&1_u64).expect("a number");
                        message.to(&peer).request::<u64>().await.expect("an answer");
                    }
                };
                late.push(match is_busy {
                    true => futures_lite::future::or(waiting, calling).await,
                    false => waiting.await,
                });
            }
            late.sort();
            let _ = say.send(late[2]);
        });
        said.recv_timeout(PATIENCE).expect("each wait ends")
    };
    for (kind, wait) in kinds {
        let floor = third_best(IdleStrategy::Park, false, wait);
        for is_busy in [false, true] {
            let late = third_best(IdleStrategy::Spin, is_busy, wait);
            println!("{kind}: busy {is_busy}: {late:?}, parked {floor:?}");
            assert!(
                late < SOON.max(20 * floor),
                "{kind}: busy {is_busy}: {late:?}, parked {floor:?}"
            );
        }
    }
}

type LocalWait = Pin<Box<dyn Future<Output = Instant>>>;

/// When another thread has said that something is there.
async fn another_thread() -> Instant {
    let (say, said) = oneshot::async_channel();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(1));
        let _ = say.send(Instant::now());
    });
    said.await.expect("it is said")
}

/// A service of one shard, which calls itself.
fn start_idling(idle: IdleStrategy) -> Runtime {
    let config = config(1, |_| {}).with_idle(idle);
    Runtime::builder(config.with_listen(["tcp://127.0.0.1:0"]))
        .handler(inline("next", |n: u64, _| Ok(n + 1)))
        .start()
        .expect("a service")
}
