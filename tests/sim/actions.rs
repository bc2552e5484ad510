//! What happens in a scenario: messages, and all that can go wrong.

use std::time::Duration;

use uuid::Uuid;

use crate::{process::Plan, scenario::Scenario};

/// Processes that a scenario has at most, one after the other included.
const PROCESSES_MAX: usize = 6;

impl Scenario {
    pub(crate) fn act(&mut self) {
        match self.random.u8(..100) {
            0..9 => self.harm(),
            9..12 => self.reconnect(),
            12..14 => self.drain_one(),
            14..26 => self.cancel_some(),
            _ => {
                for _ in 0..self.random.usize(1..12) {
                    self.send();
                }
            }
        }
    }

    /// Drops a handle, which closes its connection once its calls are over, and connects anew.
    fn reconnect(&mut self) {
        let at = self.random.usize(..self.peers.len());
        let Some(peer) = self.peers[at].peer.take() else {
            return;
        };
        self.note(format!("close {at}"));
        drop(peer);
        let (process, to) = (self.peers[at].process, self.peers[at].to.clone());
        self.connect(process, to);
    }

    /// Stops waiting for some calls, some of them sent just now.
    fn cancel_some(&mut self) {
        for _ in 0..self.random.usize(1..6) {
            self.send();
            if self.pending.is_empty() {
                continue;
            }
            let at = self.random.usize(..self.pending.len());
            let mut call = self.pending.swap_remove(at);
            call.cancel();
            self.note(format!("{} {}", call.order.id, call.end_name()));
            self.sent.push(call);
        }
    }

    fn drain_one(&mut self) {
        let process = self.random.usize(..self.world.processes.len());
        if !self.world.processes[process].is_running() {
            return;
        }
        let within = match self.random.bool() {
            true => Duration::ZERO,
            false => Duration::from_micros(self.random.u64(..100_000)),
        };
        self.note(format!("drain {process} within {within:?}"));
        self.world.drain(process, within);
    }

    /// Breaks something.
    fn harm(&mut self) {
        match self.random.u8(..10) {
            0 => {
                self.note("fault: cut all".to_owned());
                self.world.network.cut_all();
            }
            1..3 => {
                if self.world.network.cut_one() {
                    self.note("fault: cut one".to_owned());
                }
            }
            3..5 => self.half_open(),
            5..7 => self.stall(),
            7 => self.crash(),
            8 => self.restart(),
            _ => self.jump(),
        }
    }

    /// Up to twice the heartbeat timeout.
    fn random_time(&mut self) -> Duration {
        let most = 2 * self.world.limits.heartbeat_timeout;
        Duration::from_micros(self.random.u64(1..most.as_micros() as u64))
    }

    fn half_open(&mut self) {
        let now = self.world.now();
        let until = now + self.random_time();
        if self.world.network.half_open(now, until) {
            self.note("fault: half-open".to_owned());
        }
    }

    fn stall(&mut self) {
        let until = self.world.now() + self.random_time();
        let process = self.random.usize(..self.world.processes.len());
        let shards = self.world.processes[process].shards.len();
        let shard = self.random.bool().then(|| self.random.usize(..shards));
        self.world.stall(process, shard, until);
        for call in &mut self.pending {
            let connected = &self.peers[call.peer];
            let is_its = |at: usize| connected.peer.as_ref().is_none_or(|it| it.shard() == at);
            if connected.process == process && shard.is_none_or(is_its) {
                call.excuse(until);
            }
        }
        let what = if shard.is_some() { "shard" } else { "process" };
        self.note(format!(
            "{process} {shard:?} until {until:?}, fault: stall {what}"
        ));
    }

    /// As by kill -9.
    fn crash(&mut self) {
        let process = self.random.usize(..self.world.processes.len());
        let it = &self.world.processes[process];
        if it.is_crashed || it.shards.iter().all(|node| node.is_over()) {
            return;
        }
        self.note(format!("{process}, fault: crash"));
        self.world.crash(process);
        let is_its = |sent: &mut crate::load::Sent| self.peers[sent.peer].process == process;
        for mut call in self.pending.extract_if(.., is_its) {
            call.crash();
            self.sent.push(call);
        }
        for connected in &mut self.peers {
            if connected.process == process
                && let Some(peer) = connected.peer.take()
            {
                let account = peer.account();
                assert!(account.settled() <= account.accepted, "{account:?}");
            }
        }
    }

    /// Starts a process in the place of one that has gone: at the same endpoints, with the same
    /// handlers, and with a name of its own or the same one.
    fn restart(&mut self) {
        let processes = &self.world.processes;
        let is_gone = |&at: &usize| {
            let mut shards = processes[at].shards.iter();
            shards.all(|node| node.is_over()) && !self.succeeded.contains(&at)
        };
        let gone = (0..processes.len()).filter(is_gone);
        let Some(process) = self.random.choice(gone.collect::<Vec<_>>()) else {
            return;
        };
        if processes.len() >= PROCESSES_MAX {
            return;
        }
        let plan = processes[process].plan.clone();
        let instance = match self.random.bool() {
            true => plan.instance,
            false => Uuid::from_u128(100 + processes.len() as u128),
        };
        self.succeeded.push(process);
        self.note(format!("{process}, fault: restart"));
        self.start(Plan { instance, ..plan });
        let endpoints = self.endpoints();
        for _ in 0..3 {
            let to = self.random.choice(&endpoints).expect("there are some");
            self.connect(self.world.processes.len() - 1, to.clone());
        }
    }

    /// Time goes on while nothing runs, as on a machine that was suspended.
    fn jump(&mut self) {
        let time = self.random_time();
        self.world.mock.increment(time);
        let now = self.world.now();
        self.pending.iter_mut().for_each(|call| call.excuse(now));
        self.note("fault: jump".to_owned());
    }
}
