//! Peers that have connected to this process, and are sent to by their own connections.
//!
//! Whoever speaks of such a peer holds one handle, which has a queue as any other peer's. Beside it
//! each of the peer's connections that is used has a queue of its own, which shares the handle's
//! credit and account: what goes by one ends with it, and what follows goes by the latest.

use uuid::Uuid;

use super::{Caller, Queue};
use crate::{
    client::{Connect, Standing, Target},
    error::NotSent,
    peers::{Entry, PeerId},
    wire::Outbox,
};

impl Caller {
    /// Of which process this is the handle, if it is one that connects to this.
    pub fn instance_of(&self, peer: PeerId) -> Option<Uuid> {
        self.queues.get(&peer)?.instance
    }

    /// What goes to this peer goes by a connection that it has made, with this outbox, from now on.
    /// Returns the connection's own id.
    pub fn bind(&mut self, main: PeerId, standing: Standing, outbox: &Outbox) -> Option<PeerId> {
        let queue = self.queues.get_mut(&main)?;
        let link = PeerId::unique();
        let connect = Connect {
            peer: link,
            to: Target::Caller(queue.instance?),
            shared: queue.shared.clone(),
            is_routed: true,
            prefers_ipc: false,
        };
        queue.callers.push(link);
        let waiting = queue.move_waiting();
        self.knows_shards = true;
        self.open(&connect);
        if let Some(queue) = self.queues.get_mut(&link) {
            (queue.main, queue.instance) = (Some(main), None);
            queue.begin_anew(outbox);
        }
        self.stand(link, standing);
        for waiting in waiting {
            self.wait_for(link, waiting);
        }
        Some(link)
    }

    /// The process has no connection to this one: what waits for it comes back, as does all that
    /// follows until it has.
    pub fn miss(&mut self, main: PeerId) {
        let Some(queue) = self.queues.get_mut(&main) else {
            return;
        };
        if queue.callers.is_empty() {
            queue.standing = Standing::Away;
            self.end_waiting(main, NotSent::NotConnected);
        }
    }

    /// A connection of such a peer has ended: all that went by it ends. Returns how many answers of
    /// this process stood in its outbox.
    pub fn part(&mut self, link: PeerId, outbox: &mut Outbox) -> usize {
        let answers = self.lost(link, outbox);
        self.end_waiting(link, NotSent::ConnectionLost);
        self.detach(link);
        self.queues.remove(&link);
        self.busy.retain(|&busy| busy != link);
        answers
    }

    /// As [`part`](Self::part), for a connection that stands, and that nobody sends by any more:
    /// what is in its outbox leaves, and who waits for an answer has stopped waiting, or is told
    /// that it does not come.
    pub fn let_go(&mut self, link: PeerId, outbox: Option<&Outbox>) {
        if let (Some(queue), Some(outbox)) = (self.queues.get_mut(&link), outbox) {
            let sent = queue.settle(outbox);
            let leaving = outbox.waiting().one_way;
            queue.shared.account.add_many(Entry::OneWaySent, leaving);
            self.add_ends(Entry::OneWaySent, sent + leaving);
        }
        self.detach(link);
        self.close(link, None);
    }

    fn end_waiting(&mut self, peer: PeerId, why: NotSent) {
        let waiting = self.queues.get_mut(&peer).map(Queue::take_waiting);
        for waiting in waiting.into_iter().flatten() {
            self.end_unsent(peer, &waiting.header, waiting.payload, why);
        }
    }

    /// Nothing more goes by this connection.
    fn detach(&mut self, link: PeerId) {
        let main = self.main_of(link);
        if let Some(main) = main.and_then(|main| self.queues.get_mut(&main)) {
            main.callers.retain(|&it| it != link);
            // Until it is known whether there is another.
            main.standing = Standing::Down;
        }
    }
}
