//! Connections that are made anew while answers are still to come.

use std::time::Duration;

use corelane::{
    engine::sim::Weather,
    wire::{HandlerKey, Header, Kind},
};
use fastrand::Rng;

use crate::{
    handlers::{Order, Runs},
    scenario::random_limits,
    stranger::Stranger,
    world::World,
};

const MS: Duration = Duration::from_millis(1);

/// The process has dialed, and serves whoever is there: the connection keeps its name as it is made
/// anew, but another peer may be at its end, with calls of the same numbers.
#[test]
fn an_answer_does_not_go_out_on_a_later_connection_than_its_request_came_by() {
    for handler in ["sleep", "sleep.last", "block", "gather"] {
        let mut limits = random_limits(&mut Rng::with_seed(0));
        limits.shard.spawned_max = 10;
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
        (limits.pool_threads, limits.pool_queue) = (1, 10);
        limits.heartbeat_timeout = Duration::from_secs(10);
        let mut world = World::new(0, Weather::default(), limits);
        let runs = Runs::new(world.mock.clone());
        world.add_process(0, 2, true, &runs.handlers());
        world.processes[0].pool.takes_us = 50_000..50_001;
        let (mut stranger, _peer) = Stranger::dialed(&mut world);

        stranger.say(&request(handler, 7), &order().encode());
        stranger.pass(&mut world, MS / 2);
        assert_eq!(runs.take().len(), usize::from(handler != "gather"));
        assert_eq!(stranger.count(Kind::Response), 0, "{handler}");
        world.network.cut_all();
        stranger.pass(&mut world, 100 * MS);
        assert_eq!(stranger.up.len(), 2, "it was made anew");
        assert_eq!(stranger.count(Kind::Response), 0, "{handler}");

        // Of this connection's own.
        stranger.say(&request("run", 7), &order().encode());
        stranger.pass(&mut world, 5 * MS);
        assert_eq!(stranger.count(Kind::Response), 1, "{handler}");
    }
}

fn request(handler: &str, correlation: u64) -> Header {
    Header {
        handler: HandlerKey::of(handler),
        deadline_us: 1_000_000,
        ..Header::new(Kind::Request, correlation)
    }
}

fn order() -> Order {
    Order::returning(50_000)
}
