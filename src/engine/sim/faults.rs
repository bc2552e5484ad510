//! What goes wrong on a network: cuts, half-open connections, engines that stand still.

use quanta::Instant;

use super::{Network, Sim, cables::Hole};

/// A message that has left one engine for another, or has arrived there.
#[derive(Clone, Copy, Debug)]
pub struct Carried<'a> {
    /// The connection: no other ever has this number, the same two engines' next one included.
    pub cable: usize,
    /// Whose message it is, by [`Sim::node`].
    pub from: usize,
    /// Whom it is for.
    pub to: usize,
    /// False as it leaves, true as it is handed over.
    pub has_arrived: bool,
    /// Its header frame.
    pub header: &'a [u8],
    /// Its payload.
    pub payload: &'a [u8],
}

impl Network {
    /// Cuts every connection: of what is under way some may arrive. Dialing ends connect again.
    pub fn cut_all(&self) {
        let mut cables = self.0.borrow_mut();
        for cable in cables.whole() {
            cables.cut(cable);
        }
    }

    /// Cuts one connection by chance. False if there is none.
    pub fn cut_one(&self) -> bool {
        let mut cables = self.0.borrow_mut();
        let whole = cables.whole();
        let cut = cables.random.choice(whole);
        cut.map(|cable| cables.cut(cable)).is_some()
    }

    /// Lets nothing through one connection, in one direction or in both, until then. Whoever hears
    /// nothing for its heartbeat timeout gives it up; if nobody does, what was under way arrives
    /// late, and in order. False if there is no connection.
    pub fn half_open(&self, now: Instant, until: Instant) -> bool {
        let mut cables = self.0.borrow_mut();
        let whole = cables.whole();
        let Some(number) = cables.random.choice(whole) else {
            return false;
        };
        let directions = match cables.random.u8(..3) {
            0 => [true, false],
            1 => [false, true],
            _ => [true, true],
        };
        let cable = cables.get_mut(number).expect("was just found");
        for (lane, is_holed) in cable.lanes.iter_mut().zip(directions) {
            let is_open = lane.hole.is_none_or(|hole| hole.until <= now);
            if is_holed && is_open {
                lane.hole = Some(Hole { since: now, until });
            }
        }
        true
    }

    /// This engine's shard takes no turn from now on: its peers hear nothing of it.
    pub fn pause(&self, node: usize, now: Instant) {
        let mut cables = self.0.borrow_mut();
        cables.nodes[node].paused_since.get_or_insert(now);
        cables.forget_wakes();
    }

    /// It goes on.
    pub fn resume(&self, node: usize) {
        let mut cables = self.0.borrow_mut();
        cables.nodes[node].paused_since = None;
        cables.forget_wakes();
    }

    /// Has somebody look on: he is shown each message as it leaves and as it is handed over.
    pub fn watch(&self, watch: impl FnMut(Carried<'_>) + 'static) {
        self.0.borrow_mut().watch = Some(Box::new(watch));
    }
}

impl Sim {
    /// Its number on its network.
    pub fn node(&self) -> usize {
        self.node
    }

    /// The most messages that wait in an outbox of those connections that are always read, or of
    /// the others, which are read while there is room for answers.
    pub fn outbox_most(&self, always_read: bool) -> usize {
        let links = self.links.iter().map(|(_, link)| link);
        let links = links.filter(|link| link.is_always_read() == always_read);
        links.map(|link| link.outbox.messages()).max().unwrap_or(0)
    }
}
