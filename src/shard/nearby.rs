//! From tcp to ipc, where both ends are on one host.
//!
//! A process that is dialed by tcp, at a loopback address, says in its welcome on which host it
//! runs, and where it listens by ipc. If the host is ours, that way is tried before the first
//! message goes out: a connection there, a hello, and the peer's connection is that one if the same
//! process answers. Containers share a host's boot id and not its files, and another process may
//! sit at the path, or nobody: then, or if no welcome comes in time, all stays as it was.
//!
//! What was dialed is closed `limits.drain_ms` later: what the peer has asked by it is answered by
//! then, or not at all. An ipc connection that is lost leads back to what was dialed; and that
//! process is not tried again.

use std::time::Duration;

use quanta::Instant;

use super::{Core, Shard};
use crate::{
    config::Endpoint,
    engine::{ConnectionId, Engine, Pauses},
    peers::PeerId,
    wire::{Header, Hello, Kind},
};

/// For so long messages wait for a welcome by ipc.
const PATIENCE: Duration = Duration::from_millis(250);

/// The ways that are being tried, and what is left of those that were.
#[derive(Debug)]
pub(super) struct Nearby {
    /// Welcomed by tcp: to be tried.
    wanted: Vec<Candidate>,
    trials: Vec<Trial>,
    /// Their ipc connections are lost: to be dialed as before, and when.
    lost: Vec<(PeerId, Instant)>,
    /// Connections that were dialed and are left, and until when they serve.
    left: Vec<(ConnectionId, Instant)>,
    /// There may be something to do, now or later; else a turn looks no further.
    pub(super) is_due: bool,
    random: fastrand::Rng,
}

#[derive(Debug)]
struct Candidate {
    peer: PeerId,
    endpoint: Endpoint,
    /// By tcp.
    welcome: Hello,
}

#[derive(Debug)]
struct Trial {
    candidate: Candidate,
    connection: ConnectionId,
    until: Instant,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Open,
    /// The process that was expected has welcomed us.
    Met(Box<Hello>),
    /// Nobody has, or another.
    Failed,
    /// The peer's own connection is lost, or nobody speaks of it any more.
    Moot,
}

impl Trial {
    /// Nothing on the tried connection brings back what the peer's own has lost.
    fn end(&mut self, outcome: Outcome) {
        if !matches!(self.outcome, Outcome::Moot) {
            self.outcome = outcome;
        }
    }
}

impl Nearby {
    /// Its pauses follow from what the shard says of itself: no two have the same, and a simulated
    /// one has the same again.
    pub(super) fn new(own: &Hello) -> Self {
        let seed = own.instance.as_u64_pair().0 ^ own.shard.unwrap_or(0) as u64;
        Self {
            wanted: Vec::new(),
            trials: Vec::new(),
            lost: Vec::new(),
            left: Vec::new(),
            is_due: false,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let trials = self.trials.iter().map(|it| it.until);
        let later = self.left.iter().map(|it| it.1);
        let later = later.chain(self.lost.iter().map(|it| it.1));
        trials.chain(later).min()
    }

    fn trial_at(&mut self, connection: ConnectionId) -> Option<&mut Trial> {
        self.trials
            .iter_mut()
            .find(|it| it.connection == connection)
    }

    /// Whether this connection is one that is tried.
    pub(super) fn is_tried(&self, connection: ConnectionId) -> bool {
        self.trials.iter().any(|it| it.connection == connection)
    }

    /// Whether this connection is one that was dialed and is left.
    pub(super) fn is_left(&self, connection: ConnectionId) -> bool {
        self.left.iter().any(|it| it.0 == connection)
    }

    /// A tried connection has failed, or one that was left has ended. False if it is neither.
    pub(super) fn on_down(&mut self, now: Instant, connection: ConnectionId) -> bool {
        if let Some(trial) = self.trial_at(connection) {
            trial.end(Outcome::Failed);
            return true;
        }
        let left = self.left.iter_mut().find(|it| it.0 == connection);
        // The engine would dial it again.
        left.map(|it| it.1 = now).is_some()
    }

    /// Nothing is tried any more for this peer.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.wanted.retain(|it| it.peer != peer);
        self.lost.retain(|it| it.0 != peer);
        let trials = self.trials.iter_mut();
        for trial in trials.filter(|it| it.candidate.peer == peer) {
            trial.end(Outcome::Moot);
        }
    }

    /// Its ipc connection is lost, as so many before it in a row. What was dialed is dialed at once
    /// the first time; a peer that goes on so is paused for, as for any that cannot be kept.
    pub(super) fn lose(&mut self, now: Instant, peer: PeerId, before: u32, pauses: &Pauses) {
        let failures = before.checked_sub(1);
        let pause = failures.map(|it| pauses.after(it, &mut self.random));
        self.lost.push((peer, now + pause.unwrap_or_default()));
        self.is_due = true;
    }

    /// Somebody has welcomed us on a tried connection.
    pub(super) fn on_welcome(&mut self, connection: ConnectionId, payload: &mut [u8]) {
        let Some(trial) = self.trial_at(connection) else {
            return;
        };
        let expected = &trial.candidate.welcome;
        let outcome = match Hello::decode(payload) {
            Ok(hello) if hello.instance == expected.instance && hello.shard == expected.shard => {
                Outcome::Met(Box::new(hello))
            }
            _ => Outcome::Failed,
        };
        trial.end(outcome);
    }
}

impl Core {
    /// Has a peer tried by ipc that was welcomed by tcp, if that can be. Gives the welcome back if
    /// not.
    pub(super) fn try_nearby(&mut self, peer: PeerId, welcome: Hello) -> Option<Hello> {
        let may_move = self.side.caller.borrow().may_move(peer, welcome.instance);
        let is_loopback = {
            let caller = self.side.caller.borrow();
            caller.endpoint_of(peer).is_some_and(Endpoint::is_loopback)
        };
        // Whoever has our hello knows our boot id, and could name any path of this machine's.
        let is_here = is_loopback && !welcome.host.is_empty() && welcome.host == self.host;
        let endpoint = (may_move && is_here)
            .then(|| ipc_endpoint(&welcome))
            .flatten();
        let Some(endpoint) = endpoint else {
            return Some(welcome);
        };
        self.nearby.wanted.push(Candidate {
            peer,
            endpoint,
            welcome,
        });
        self.nearby.is_due = true;
        None
    }
}

/// Where the shard that says this listens by ipc.
fn ipc_endpoint(welcome: &Hello) -> Option<Endpoint> {
    let (shards, listed) = (welcome.shards.max(1), welcome.endpoints.len());
    let at = welcome.shard.unwrap_or(0);
    if at >= shards || !listed.is_multiple_of(shards) {
        return None;
    }
    let per_shard = listed / shards;
    let own = &welcome.endpoints[at * per_shard..(at + 1) * per_shard];
    let mut endpoints = own.iter().filter_map(|it| it.parse().ok());
    endpoints.find(|it| matches!(it, Endpoint::Ipc { .. }))
}

impl<E: Engine> Shard<E> {
    /// Goes on with what is tried.
    #[cold]
    pub(super) fn step_nearby(&mut self, now: Instant) {
        for (peer, until) in std::mem::take(&mut self.core.nearby.lost) {
            match until <= now {
                true => self.dial_again(now, peer),
                false => self.core.nearby.lost.push((peer, until)),
            }
        }
        while let Some(candidate) = self.core.nearby.wanted.pop() {
            self.begin_trial(now, candidate);
        }
        let (mut at, trials) = (0, &mut self.core.nearby.trials);
        let mut ended = Vec::new();
        while let Some(trial) = trials.get(at) {
            match trial.outcome {
                Outcome::Open if now < trial.until => at += 1,
                _ => ended.push(trials.swap_remove(at)),
            }
        }
        for trial in ended {
            self.end_trial(now, trial);
        }
        let Self { engine, core } = self;
        let mut left = std::mem::take(&mut core.nearby.left);
        left.retain(|&(connection, until)| {
            let stays = now < until;
            if !stays {
                core.strikes.remove(&connection);
                engine.close(connection);
            }
            stays
        });
        core.nearby.left = left;
        core.nearby.is_due = core.nearby.next_due().is_some();
    }

    fn begin_trial(&mut self, now: Instant, candidate: Candidate) {
        match self.engine.connect_once(&candidate.endpoint) {
            Ok(connection) => self.core.nearby.trials.push(Trial {
                candidate,
                connection,
                until: now + PATIENCE,
                outcome: Outcome::Open,
            }),
            Err(_) => self.core.admit(now, candidate.peer, candidate.welcome),
        }
    }

    /// The first thing that is said on a tried connection.
    pub(super) fn greet_nearby(&mut self, connection: ConnectionId) {
        let hello = Header::new(Kind::Hello, 0);
        if let Some(outbox) = self.engine.outbox(connection) {
            // It is empty.
            let _ = outbox.push(&hello, &self.core.hello);
        }
    }

    fn end_trial(&mut self, now: Instant, trial: Trial) {
        let Candidate {
            peer,
            endpoint,
            welcome,
        } = trial.candidate;
        match trial.outcome {
            Outcome::Met(hello) => {
                let dialed = self.core.peers.rebind(peer, trial.connection);
                let until = now + self.core.options.close_within;
                self.core.nearby.left.extend(dialed.map(|it| (it, until)));
                let mut caller = self.core.side.caller.borrow_mut();
                caller.rebind(peer, self.engine.look(trial.connection));
                caller.move_to(now, peer, endpoint);
                drop(caller);
                self.core.admit(now, peer, *hello);
            }
            Outcome::Moot => self.close_tried(trial.connection),
            Outcome::Open | Outcome::Failed => {
                self.close_tried(trial.connection);
                tracing::debug!(%peer, %endpoint, "not the same process by ipc; tcp stays");
                self.core.admit(now, peer, welcome);
            }
        }
    }

    fn close_tried(&mut self, connection: ConnectionId) {
        self.core.strikes.remove(&connection);
        self.engine.close(connection);
    }

    /// The ipc connection is lost: what the program has named is dialed, as at first.
    fn dial_again(&mut self, now: Instant, peer: PeerId) {
        let dialed = self.core.side.caller.borrow_mut().move_back(peer);
        let Some(endpoint) = dialed else {
            return;
        };
        match self.engine.connect(&endpoint) {
            Ok(connection) => {
                if let Some(lost) = self.core.peers.rebind(peer, connection) {
                    self.engine.close(lost);
                }
                let mut caller = self.core.side.caller.borrow_mut();
                caller.rebind(peer, self.engine.look(connection));
            }
            Err(error) => {
                tracing::error!(%endpoint, %error, "cannot connect; trying again");
                let again = now + self.core.options.reconnect.longest;
                self.core.nearby.lost.push((peer, again));
            }
        }
    }
}
