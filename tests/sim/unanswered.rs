//! Messages whose answers are refusals or never arrive, and what is counted for them: each is
//! accounted for once, whatever becomes of its connection.

use std::time::Duration;

use corelane::{
    client::Peer,
    engine::{Engine, sim::Weather},
    metrics::{Counters, Snapshot},
    wire::{HandlerKey, Header, Hello, Kind, Reason},
};
use fastrand::Rng;
use uuid::Uuid;

use crate::{
    handlers::{Order, Runs},
    scenario::random_limits,
    stranger::Stranger,
    world::World,
};

const MS: Duration = Duration::from_millis(1);
/// So many answers may wait for a connection.
const ANSWERS_MAX: usize = 8;
/// What is declined bears this number.
const DECLINED: u64 = 7;

/// How the stranger and the process are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The process has dialed.
    Dialed,
    /// The stranger has, and says nothing of itself.
    Accepted,
    /// The stranger has, and the process sends to it by that connection.
    CalledBack,
}

const WAYS: [Way; 3] = [Way::Dialed, Way::Accepted, Way::CalledBack];

/// A process of one shard, and a stranger that takes one answer and no more unless it listens.
struct Bench {
    world: World,
    stranger: Stranger,
    _peer: Option<Peer>,
}

impl Bench {
    fn new(way: Way) -> Self {
        let mut limits = random_limits(&mut Rng::with_seed(0));
        limits.shard.turn_messages_max = 16;
        limits.shard.shedding = None;
        limits.shard.outgoing_messages_max = ANSWERS_MAX;
        limits.shard.outgoing_bytes_max = 100_000;
        limits.shard.inbox_capacity = 100;
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (ANSWERS_MAX, 100_000);
        limits.heartbeat_timeout = Duration::from_secs(10);
        limits.slow_consumer = Duration::from_secs(10);
        let weather = Weather {
            in_flight_max: 1,
            ..Weather::default()
        };
        let mut world = World::new(0, weather, limits);
        let runs = Runs::new(world.mock.clone());
        world.add_process(0, 1, true, &runs.handlers());
        let mut stranger = Stranger::new(&world);
        let client = world.processes[0].client.clone();
        let mut peer = None;
        match way {
            Way::Dialed => peer = Some(client.connect(&stranger.endpoint).unwrap()),
            _ => stranger.dial(&world.processes[0].shards[0].endpoint.clone()),
        }
        stranger.pass(&mut world, 5 * MS);
        if way == Way::CalledBack {
            let instance = Uuid::from_u128(7);
            let hello = Hello::of_instance(instance).encode();
            stranger.say(&Header::new(Kind::Hello, 0), &hello);
            stranger.pass(&mut world, 5 * MS);
            let called = client.peer(instance).unwrap();
            let message = client.message("any").raw("x").to(&called);
            message.one_way().unwrap();
            stranger.pass(&mut world, 5 * MS);
            assert_eq!(stranger.count(Kind::OneWay), 1);
            peer = Some(called);
        }
        stranger.heard.clear();
        Self {
            world,
            stranger,
            _peer: peer,
        }
    }

    /// Says it, and hears nothing.
    fn say(&mut self, header: Header) {
        let order = Order::returning(0);
        self.stranger.say(&header, &order.encode());
        self.deliver();
    }

    fn deliver(&mut self) {
        self.stranger.engine.flush(self.world.now());
        self.world.pass(MS / 5, |_| {});
    }

    fn listen(&mut self) {
        self.stranger.pass(&mut self.world, 5 * MS);
    }

    /// What the process has counted in its life.
    fn end(mut self) -> (Counters, Snapshot) {
        self.world.drain(0, Duration::ZERO);
        self.world.pass(MS, |_| {});
        self.world.processes[0].last_words()
    }
}

fn call(handler: &str, kind: Kind, correlation: u64) -> Header {
    Header {
        handler: HandlerKey::of(handler),
        deadline_us: if kind == Kind::OneWay { 0 } else { 1_000_000 },
        ..Header::new(kind, correlation)
    }
}

#[test]
fn a_call_whose_payload_is_not_taken_in_is_refused_for_what_is_the_reason() {
    for reason in [Reason::TooLarge, Reason::Overloaded] {
        for kind in [Kind::Request, Kind::Confirm, Kind::OneWay] {
            let mut it = Bench::new(Way::Dialed);
            it.world.plant.decline(DECLINED, reason);
            it.say(call("run", kind, DECLINED));
            it.listen();
            let heard: Vec<Reason> = it.stranger.heard.iter().map(|it| it.1.reason).collect();
            assert_eq!(heard, vec![reason; usize::from(kind != Kind::OneWay)]);
            for (_, _, text) in &it.stranger.heard {
                let text = String::from_utf8_lossy(text);
                let limit = match reason {
                    Reason::TooLarge => "message_bytes_max",
                    _ => "buffered_bytes_max",
                };
                assert!(text.contains(limit), "{text}");
            }
            let (total, _) = it.end();
            assert_eq!((total.accepted, total.handled, total.lost), (1, 0, 0));
            assert_eq!(total.nacked_by_reason[usize::from(reason.to_u16())], 1);
            assert_eq!((total.nacked(), total.late_answers), (1, 0));
        }
    }
}

#[test]
fn an_answer_that_nobody_takes_is_late() {
    for is_declined in [false, true] {
        for kind in [Kind::Response, Kind::Ack] {
            let mut it = Bench::new(Way::Dialed);
            if is_declined {
                it.world.plant.decline(DECLINED, Reason::Overloaded);
            }
            it.say(Header::new(kind, DECLINED));
            let (total, _) = it.end();
            assert_eq!((total.late_answers, total.accepted), (1, 0), "{kind:?}");
        }
    }
}

#[test]
fn what_there_is_no_room_to_refuse_is_lost() {
    let mut it = Bench::new(Way::Dialed);
    it.world.plant.decline(DECLINED, Reason::Overloaded);
    // One answer is on its way, and others wait.
    let (calls, answers) = (20, ANSWERS_MAX as u64 + 1);
    for _ in 0..calls {
        it.say(call("run", Kind::Request, DECLINED));
    }
    it.listen();
    assert_eq!(it.stranger.count(Kind::Nack) as u64, answers);
    let (total, metrics) = it.end();
    assert_eq!((total.accepted, total.nacked()), (calls, answers));
    assert_eq!(total.lost, calls - answers);
    let mut handlers = metrics.handlers();
    let of_it = handlers.find(|it| it.name == "run").unwrap().counters;
    assert_eq!((of_it.refused(), of_it.lost), (answers, calls - answers));
}

#[test]
fn a_welcome_without_room_is_a_lost_answer() {
    let mut it = Bench::new(Way::Dialed);
    for correlation in 0..=ANSWERS_MAX as u64 {
        it.say(call("run", Kind::Request, correlation));
    }
    let hello = Hello::of_instance(Uuid::from_u128(7)).encode();
    it.stranger.say(&Header::new(Kind::Hello, 0), &hello);
    it.deliver();
    it.listen();
    assert_eq!(it.stranger.count(Kind::Response), ANSWERS_MAX + 1);
    assert_eq!(it.stranger.count(Kind::Welcome), 0);
    assert_eq!(it.end().0.answers_lost, 1);
}

/// One of them is on its way by then, and nobody knows what becomes of it.
#[test]
fn answers_that_wait_are_lost_with_their_connection() {
    for way in WAYS {
        for is_cut in [true, false] {
            let mut it = Bench::new(way);
            for correlation in 0..5 {
                it.say(call("run", Kind::Request, correlation));
            }
            match is_cut {
                true => it.world.network.cut_all(),
                // By the process, for what it cannot read.
                false => {
                    it.world.plant.garble(100);
                    it.say(call("run", Kind::Request, 100));
                }
            }
            it.world.pass(MS, |_| {});
            let (total, _) = it.end();
            assert_eq!((total.accepted, total.handled), (5, 5));
            assert_eq!(total.answers_lost, 4, "{way:?}, cut: {is_cut}");
        }
    }
}
