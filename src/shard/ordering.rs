//! Messages of handlers that take one peer's after the other: from the reactor into their lines.

use quanta::Instant;

use super::{Core, parcel::Parcel, tasks::Origin};
use crate::{
    client,
    engine::ConnectionId,
    handler::{Failure, Lent, Sender, Spawning},
    wire::{Header, Outbox, Received},
};

impl Core {
    /// Gives a message its place in its peer's line, or refuses it.
    #[cold]
    pub(super) fn order(
        &mut self,
        handler: usize,
        connection: ConnectionId,
        header: Header,
        (read, deadline): (Instant, Option<Instant>),
        message: &mut Received<'_>,
        outbox: &mut Outbox,
    ) {
        let shard = self.info.shard;
        let sender = sender(shard, connection);
        let asker = self.asker_at(connection);
        match self.make_ordered((handler, sender), asker, header, deadline, message) {
            Ok(spawning) => self.spawn_ordered(Origin::here(connection, outbox), read, spawning),
            Err(Failure { reason, text }) => self.refuse(outbox, &header, reason, &text),
        }
    }

    /// As [`order`](Self::order), for a message that another shard has read. A refused one comes
    /// back with its answer.
    #[cold]
    pub(super) fn order_parcel(
        &mut self,
        handler: usize,
        home: usize,
        mut parcel: Box<Parcel>,
    ) -> Option<Box<Parcel>> {
        let (header, read, deadline) = (parcel.header, parcel.read, parcel.deadline);
        let place = (handler, sender(home, parcel.connection));
        let asker = parcel.origin(home);
        let mut is_taken = false;
        let message = &mut parcel.message(&mut is_taken);
        match self.make_ordered(place, asker, header, deadline, message) {
            Ok(spawning) => {
                self.spawn_ordered(Origin::There { home, parcel }, read, spawning);
                None
            }
            Err(Failure { reason, text }) => {
                self.refuse_parcel(&mut parcel, reason, &text);
                Some(parcel)
            }
        }
    }

    fn make_ordered(
        &mut self,
        place: (usize, Sender),
        asker: Option<client::Origin>,
        header: Header,
        deadline: Option<Instant>,
        message: &mut Received<'_>,
    ) -> Result<Spawning, Failure> {
        let lent = Lent {
            shard: &self.info,
            client: &self.local_client,
            asker: &asker,
            timers: &self.timers,
            may_spawn: self.tasks.has_room(),
            reply_bytes_max: self.options.message_bytes_max,
        };
        self.registry.order(place, header, deadline, message, &lent)
    }

    fn spawn_ordered(&mut self, origin: Origin, read: Instant, spawning: Spawning) {
        self.recorder.counters.spawned += 1;
        self.registry.begin(spawning.handler);
        let underway = &mut self.underway;
        self.tasks.spawn(origin, read, spawning, underway);
    }
}

fn sender(shard: usize, connection: ConnectionId) -> Sender {
    let connection = connection.to_u64();
    Sender { shard, connection }
}
