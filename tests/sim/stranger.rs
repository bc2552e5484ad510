//! A peer that is no corelane process, and does with its connections what it likes.

use std::time::Duration;

use corelane::{
    client::Peer,
    engine::{ConnectionId, Engine, Event, sim::Sim},
    wire::{Header, Kind},
};
use quanta::Instant;

use crate::{process::engine_options, world::World};

pub(crate) struct Stranger {
    pub(crate) engine: Sim,
    pub(crate) endpoint: String,
    /// Connections that have come up, in their order.
    pub(crate) up: Vec<ConnectionId>,
    /// What it was told.
    pub(crate) heard: Vec<(ConnectionId, Header, Vec<u8>)>,
}

impl Stranger {
    /// One that listens.
    pub(crate) fn new(world: &World) -> Self {
        Self::at(world, "tcp://127.0.0.1:0")
    }

    /// One that listens there.
    pub(crate) fn at(world: &World, endpoint: &str) -> Self {
        let mut engine = world.network.engine(engine_options(&world.limits));
        let endpoint = endpoint.parse().expect("is an endpoint");
        let endpoint = engine.listen(&endpoint).expect("is free");
        Self {
            engine,
            endpoint: endpoint.to_string(),
            up: Vec::new(),
            heard: Vec::new(),
        }
    }

    /// Connects there.
    pub(crate) fn dial(&mut self, endpoint: &str) {
        let endpoint = endpoint.parse().expect("is an endpoint");
        self.engine.connect(&endpoint).expect("can be begun");
    }

    /// One that the first process has dialed, and goes on dialing while the peer is kept.
    pub(crate) fn dialed(world: &mut World) -> (Self, Peer) {
        let mut stranger = Self::new(world);
        let client = world.processes[0].client.clone();
        let dialed = client.connect_from(0, &stranger.endpoint);
        stranger.pass(world, Duration::from_millis(5));
        (stranger, dialed.expect("is an endpoint"))
    }

    /// Listens to everybody, and lets out what was said. Returns how much there was.
    pub(crate) fn turn(&mut self, now: Instant) -> usize {
        let Self { up, heard, .. } = self;
        let events = self.engine.poll(now, usize::MAX, &mut |event| match event {
            Event::Up(connection) => up.push(connection),
            Event::Message(mut incoming) => {
                let header = Header::decode(incoming.message.header()).expect("is a header");
                let payload = incoming.message.payload().to_vec();
                heard.push((incoming.connection, header, payload));
            }
            _ => {}
        });
        events + self.engine.flush(now)
    }

    /// Says something on its last connection.
    pub(crate) fn say(&mut self, header: &Header, payload: &[u8]) {
        let connection = *self.up.last().expect("somebody has connected");
        let outbox = self.engine.outbox(connection).expect("is up");
        outbox.push(header, payload).expect("has room");
    }

    /// How often it was told this.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.heard.iter().filter(|it| it.1.kind == kind).count()
    }

    /// Lets this much time pass, here and in the world.
    pub(crate) fn pass(&mut self, world: &mut World, time: Duration) {
        let until = world.now() + time;
        while world.now() < until {
            self.turn(world.now());
            world.settle(|_| {});
            world.mock.increment(Duration::from_micros(100));
        }
    }
}
