//! A peer that is dialed by tcp and says that it listens by ipc on the same host, and what it then
//! does with both.

use std::time::Duration;

use corelane::{
    client::Peer,
    engine::{Engine, Pauses, sim::Weather},
    shard::ShardOptions,
    wire::{Header, Hello, Kind},
};
use quanta::Instant;
use uuid::Uuid;

use crate::{process::Plan, scenario::random_limits, stranger::Stranger, world::World};

const MS: Duration = Duration::from_millis(1);
const HOST: &str = "here";
/// What goes to and fro without a pause takes no longer.
const SOON: Duration = Duration::from_millis(3);
const PAUSES: Pauses = Pauses {
    first: Duration::from_millis(20),
    longest: Duration::from_millis(200),
};

/// A process that has dialed, and what it has dialed: by tcp, and where that listens by ipc.
struct Bench {
    world: World,
    tcp: Stranger,
    ipc: Stranger,
    /// How many hellos it has welcomed by tcp.
    welcomed: usize,
    peer: Option<Peer>,
    /// What both say they are.
    instance: u128,
}

impl Bench {
    fn new() -> Self {
        let mut limits = random_limits(&mut fastrand::Rng::with_seed(0));
        limits.shard = ShardOptions {
            turn_messages_max: 1_000,
            inbox_capacity: 1_000,
            shedding: None,
            reconnect: PAUSES,
            ..limits.shard
        };
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (1_000, 1 << 20);
        limits.heartbeat_timeout = Duration::from_secs(10);
        let mut world = World::new(0, Weather::default(), limits);
        let plan = Plan {
            first_cpu: 0,
            tells_shards: true,
            instance: Uuid::from_u128(1),
            endpoints: vec!["tcp://127.0.0.1:0".to_owned()],
            host: HOST.to_owned(),
        };
        world.start(plan, &[]);
        let tcp = Stranger::new(&world);
        let ipc = Stranger::at(&world, "ipc:///of/the/strangers");
        let client = world.processes[0].client.clone().with_prefer_ipc(true);
        let peer = client.connect(&tcp.endpoint).unwrap();
        Self {
            world,
            tcp,
            ipc,
            welcomed: 0,
            peer: Some(peer),
            instance: 100,
        }
    }

    fn now(&self) -> Instant {
        self.world.now()
    }

    /// Lets some time pass, and then whatever happens at once.
    fn step(&mut self) {
        self.world.mock.increment(Duration::from_micros(100));
        loop {
            let now = self.now();
            let heard = self.tcp.turn(now) + self.ipc.turn(now);
            if !self.world.turn_all() && heard == 0 {
                return;
            }
        }
    }

    /// Lets time pass until this holds. False if it does not within so long.
    fn pass(&mut self, at_most: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let until = self.now() + at_most;
        while self.now() < until {
            self.step();
            if holds(self) {
                return true;
            }
        }
        false
    }

    fn welcome(&self) -> (Header, Vec<u8>) {
        let hello = Hello {
            host: HOST.to_owned(),
            endpoints: vec![self.tcp.endpoint.clone(), self.ipc.endpoint.clone()],
            shards: 1,
            shard: Some(0),
            ..Hello::of_instance(Uuid::from_u128(self.instance))
        };
        (Header::new(Kind::Welcome, 0), hello.encode())
    }

    /// Whether it is dialed by tcp once more, within so long.
    fn is_dialed(&mut self, at_most: Duration) -> bool {
        self.pass(at_most, |it| it.tcp.count(Kind::Hello) > it.welcomed)
    }

    /// Says by tcp where it listens by ipc, and is dialed there.
    fn begin_trial(&mut self) {
        let (header, welcome) = self.welcome();
        self.tcp.say(&header, &welcome);
        self.welcomed += 1;
        let tried = self.ipc.count(Kind::Hello);
        assert!(self.pass(SOON, |it| it.ipc.count(Kind::Hello) > tried));
    }

    /// The same process answers by ipc.
    fn end_trial(&mut self) {
        let (header, welcome) = self.welcome();
        self.ipc.say(&header, &welcome);
        // Before the shard's next turn.
        self.ipc.turn(self.world.now());
        self.pass(MS, |_| false);
    }

    fn send(&self) {
        let message = self.world.processes[0].client.message("run");
        let peer = self.peer.as_ref().expect("it is not let go of");
        message.to(peer).one_way().expect("there is room");
    }

    /// The processes that it knows.
    fn known(&self) -> Vec<u128> {
        let known = self.world.processes[0].client.peers();
        known.iter().map(|it| it.instance.as_u128()).collect()
    }

    /// The connection that was tried is closed.
    fn assert_left(&mut self) {
        let tried = self.ipc.up[self.ipc.up.len() - 1];
        assert!(self.ipc.engine.outbox(tried).is_none(), "it is kept");
    }

    /// Is lost by ipc, and will be another one. Returns for how long it was not dialed.
    fn be_lost(&mut self) -> Duration {
        self.ipc.engine.close(self.ipc.up[self.ipc.up.len() - 1]);
        self.instance += 1;
        let began = self.now();
        assert!(self.is_dialed(2 * PAUSES.longest), "it is not dialed again");
        self.now() - began
    }
}

#[test]
fn who_is_lost_by_ipc_again_and_again_is_dialed_with_growing_pauses() {
    let mut it = Bench::new();
    assert!(it.is_dialed(SOON));
    let mut pauses = Vec::new();
    for _ in 0..40 {
        it.begin_trial();
        it.end_trial();
        pauses.push(it.be_lost());
    }
    // Where it was lost nobody has dialed meanwhile.
    assert_eq!(it.ipc.up.len(), pauses.len());
    assert!(pauses[0] <= SOON, "{pauses:?}");
    assert!(pauses[1] <= PAUSES.first + SOON, "{pauses:?}");
    let longest = *pauses.iter().max().unwrap();
    assert!(longest <= PAUSES.longest + SOON, "{pauses:?}");
    // Half of the longest one on average, once they have grown.
    let late: Duration = pauses[10..].iter().sum();
    assert!(late > 30 * PAUSES.longest / 4, "{pauses:?}");
    // It stands for a while: that was no fault of its.
    it.begin_trial();
    it.end_trial();
    it.pass(PAUSES.longest, |_| false);
    assert!(it.be_lost() <= SOON);
}

#[test]
fn who_is_lost_by_ipc_is_dialed_though_there_was_no_socket_for_it() {
    let mut it = Bench::new();
    assert!(it.is_dialed(SOON));
    it.begin_trial();
    it.end_trial();
    it.world.plant.refuse_connections(1);
    let pause = it.be_lost();
    assert!(
        (PAUSES.longest..PAUSES.longest + SOON).contains(&pause),
        "{pause:?}"
    );
    it.begin_trial();
    it.end_trial();
    it.send();
    assert!(it.pass(SOON, |it| it.ipc.count(Kind::OneWay) > 0));
}

/// It says something on both connections at one moment, and the shard hears both in one turn: of
/// the peer's own, which was there before, first.
#[test]
fn who_says_goodbye_while_it_is_tried_is_not_welcomed_by_ipc() {
    let mut it = Bench::new();
    assert!(it.is_dialed(SOON));
    it.begin_trial();
    it.tcp.say(&Header::new(Kind::Goodbye, 0), &[]);
    it.tcp.turn(it.now());
    it.end_trial();
    it.send();
    it.pass(SOON, |_| false);
    assert_eq!(it.ipc.count(Kind::OneWay) + it.tcp.count(Kind::OneWay), 0);
    assert_eq!(it.known(), []);
    it.assert_left();
}

#[test]
fn who_is_lost_while_it_is_tried_is_not_up() {
    let mut it = Bench::new();
    assert!(it.is_dialed(SOON));
    it.begin_trial();
    it.world.network.cut_all();
    it.pass(MS, |_| false);
    assert_eq!(it.known(), []);
    // And is found as at first.
    assert!(it.is_dialed(100 * MS));
    it.begin_trial();
    it.end_trial();
    it.send();
    assert!(it.pass(SOON, |it| it.ipc.count(Kind::OneWay) > 0));
}

#[test]
fn who_is_let_go_of_while_it_is_tried_is_left() {
    let mut it = Bench::new();
    assert!(it.is_dialed(SOON));
    it.begin_trial();
    it.peer = None;
    // The turn in which its shard hears of that.
    it.world.turn_all();
    it.end_trial();
    it.assert_left();
}

/// Who welcomes us, and what cannot be read, come in one turn.
#[test]
fn who_is_cut_off_as_it_is_tried_is_reached_by_tcp() {
    let mut it = Bench::new();
    assert!(it.is_dialed(SOON));
    it.begin_trial();
    let (header, welcome) = it.welcome();
    it.ipc.say(&header, &welcome);
    it.world.plant.garble(13);
    it.ipc.say(&Header::new(Kind::OneWay, 13), &[]);
    it.send();
    assert!(it.pass(SOON, |it| it.tcp.count(Kind::OneWay) > 0));
    it.assert_left();
}

#[test]
fn hellos_on_connections_that_are_tried_or_left_make_no_peer() {
    let mut it = Bench::new();
    assert!(it.is_dialed(SOON));
    it.begin_trial();
    let hello = Hello::of_instance(Uuid::from_u128(7)).encode();
    it.ipc.say(&Header::new(Kind::Hello, 0), &hello);
    it.pass(MS, |_| false);
    assert_eq!(it.known(), []);
    it.end_trial();
    it.tcp.say(&Header::new(Kind::Hello, 0), &hello);
    it.pass(MS, |_| false);
    assert_eq!(it.known(), [it.instance]);
}

/// As to a process in another container, which has the same boot id and other files.
#[test]
fn a_path_that_leads_nowhere_is_not_waited_for() {
    let mut it = Bench::new();
    assert!(it.is_dialed(SOON));
    it.ipc.engine.stop_listening();
    it.send();
    let (header, welcome) = it.welcome();
    it.tcp.say(&header, &welcome);
    assert!(it.pass(SOON, |it| it.tcp.count(Kind::OneWay) > 0));
    // Nor is it tried again.
    it.ipc = Stranger::at(&it.world, &it.ipc.endpoint);
    it.pass(10 * PAUSES.longest, |_| false);
    assert_eq!(it.ipc.up.len(), 0);
}

#[test]
fn who_is_let_go_of_while_it_is_paused_for_is_not_dialed() {
    let mut it = Bench::new();
    assert!(it.is_dialed(SOON));
    // Pauses that last have come by then.
    for _ in 0..10 {
        it.begin_trial();
        it.end_trial();
        it.be_lost();
    }
    it.begin_trial();
    it.end_trial();
    it.ipc.engine.close(it.ipc.up[10]);
    it.pass(MS, |_| false);
    it.peer = None;
    assert!(!it.is_dialed(10 * PAUSES.longest));
    assert_eq!(it.ipc.up.len(), 11);
}
