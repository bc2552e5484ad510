//! One connection: its socket, its handshake, what has arrived and what is to leave.

use std::{os::fd::OwnedFd, time::Duration};

use quanta::Instant;
use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{
    EngineOptions, Io,
    buffers::Buffers,
    dial::Dial,
    poller::{Interest, Token},
};
use crate::{
    error::Lost,
    wire::{
        Outbox,
        zmtp::{Handshake, Role, SplitLimits, Splitter, write_ping},
    },
};

/// A header frame may be so much longer than ours: room for what later versions put there.
const HEADER_BYTES_MAX: usize = 4096;
/// PING and PONG are under 30 bytes; what other commands there are is read over.
const COMMAND_BYTES_MAX: usize = 4096;
/// A payload over the message limit is skipped up to so many times the limit, so that its sender is
/// told `TooLarge` and not cut off.
const SKIPPED_TIMES: u64 = 4;

/// A connection as this shard sees it.
pub(super) struct Link {
    /// `None` for an accepted one.
    pub(super) dial: Option<Dial>,
    pub(super) phase: Phase,
    pub(super) socket: Option<OwnedFd>,
    /// What has arrived; up to `read_at` it is done with. No buffer while all is.
    pub(super) read: Vec<u8>,
    pub(super) read_at: usize,
    /// Bytes that must stand in `read` before more can be made of it.
    pub(super) need: usize,
    /// How large the last message was, if it was large: the next one is expected to be, too.
    pub(super) expect: usize,
    pub(super) splitter: Splitter,
    /// Handshake and heartbeats on their way out.
    pub(super) control: Vec<u8>,
    pub(super) control_left: usize,
    pub(super) outbox: Outbox,
    /// What of the outbox the shard's account of memory knows.
    pub(super) outbox_bytes: usize,
    /// What the poller waits for; `None` if it does not watch the socket.
    pub(super) watched: Option<Interest>,
    pub(super) write: Write,
    /// Stands in the queue of those to be read.
    pub(super) is_ready: bool,
    /// Stands in the queue of those to be written.
    pub(super) is_dirty: bool,
    /// One of those that are read each turn: it keeps its read buffer.
    pub(super) is_hot: bool,
    /// Not read: its answers would have no room, or its messages where they go.
    pub(super) is_paused: bool,
    /// When the first look of the next timer is due.
    pub(super) timer_at: Option<Instant>,
    pub(super) heard_at: Instant,
    /// When the last PING was sent that nothing has been heard since.
    pub(super) pinged_at: Option<Instant>,
    /// Whether the peer knows heartbeats.
    pub(super) has_heartbeats: bool,
    /// For how long the peer's last PING said that it may be silent.
    pub(super) peer_ttl: Option<Duration>,
    /// Since when its queue has been full.
    pub(super) full_since: Option<Instant>,
    /// When its socket was last known to have nothing to read.
    pub(super) emptied_at: Instant,
    /// The same, when what stands in `read` was read: it has come since then.
    pub(super) since: Instant,
}

/// How far a connection is.
pub(super) enum Phase {
    /// To be dialed then.
    Waiting {
        until: Instant,
    },
    /// Its host's name is asked for; asked again then.
    Resolving {
        until: Instant,
    },
    /// The kernel connects.
    Connecting {
        until: Instant,
    },
    /// The peer has until then to say what it is.
    Greeting {
        handshake: Box<Handshake>,
        until: Instant,
    },
    Up,
}

/// Whether the socket takes more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    Open,
    /// It took no more; it is tried again each turn.
    Retried,
    /// It took no more; the poller tells when it does.
    Awaited,
}

impl Link {
    /// A connection that was just accepted.
    pub(super) fn accepted(socket: OwnedFd, now: Instant, options: &EngineOptions) -> Self {
        let mut link = Self::new(None, options, now);
        link.greet(socket, now, options);
        link
    }

    /// A connection to be dialed at once.
    pub(super) fn dialed(dial: Dial, now: Instant, options: &EngineOptions) -> Self {
        Self::new(Some(dial), options, now)
    }

    fn new(dial: Option<Dial>, options: &EngineOptions, now: Instant) -> Self {
        Self {
            dial,
            phase: Phase::Waiting { until: now },
            socket: None,
            read: Vec::new(),
            read_at: 0,
            need: 0,
            expect: 0,
            splitter: Splitter::new(split_limits(options)),
            control: Vec::new(),
            control_left: 0,
            outbox: Outbox::new(options.outgoing_messages_max, options.outgoing_bytes_max),
            outbox_bytes: 0,
            watched: None,
            write: Write::Open,
            is_ready: false,
            is_dirty: false,
            is_hot: false,
            is_paused: false,
            timer_at: None,
            heard_at: now,
            pinged_at: None,
            has_heartbeats: false,
            peer_ttl: None,
            full_since: None,
            emptied_at: now,
            since: now,
        }
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.dial.is_none()
    }

    /// Whether it is dialed once, and not again.
    pub(super) fn is_once(&self) -> bool {
        self.dial.as_ref().is_some_and(|dial| dial.is_once)
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up)
    }

    /// Whether it must take something before it is read again: its queue is full, or holds some of
    /// the memory that the shard has no more of.
    ///
    /// Answers to our own calls need no room, and keep the peer able to read: what brings them is
    /// always read.
    #[inline]
    pub(super) fn is_congested(&self, is_tight: bool) -> bool {
        let is_asked_only = self.is_accepted() && !self.outbox.brings_answers();
        is_asked_only && (self.outbox.is_blocked() || (is_tight && !self.outbox.is_empty()))
    }

    /// Whether it is the peer that keeps it from being read: by not reading. What waits for another
    /// shard is none of the peer's fault.
    #[inline]
    pub(super) fn is_backed_up(&self, is_tight: bool) -> bool {
        self.outbox.is_full() || (self.is_accepted() && is_tight && !self.outbox.is_empty())
    }

    /// Begins the handshake on a socket that is connected.
    pub(super) fn greet(&mut self, socket: OwnedFd, now: Instant, options: &EngineOptions) {
        let role = match self.dial {
            Some(_) => Role::Dialer,
            None => Role::Listener,
        };
        let handshake = Box::new(Handshake::new(role, options.handshake_bytes_max));
        handshake.open(&mut self.control);
        self.socket = Some(socket);
        self.heard_at = now;
        self.phase = Phase::Greeting {
            handshake,
            until: now + options.handshake,
        };
    }

    /// Back to the beginning, for the next attempt: nothing of the lost connection is left.
    pub(super) fn reset(&mut self, until: Instant, io: &mut Io) {
        self.release(&mut io.buffers);
        // Closing it takes it out of the poller's set.
        self.socket = None;
        self.watched = None;
        self.splitter = Splitter::new(split_limits(&io.options));
        self.control.clear();
        self.control_left = 0;
        self.outbox.clear();
        self.settle_outbox(&mut io.buffers);
        self.write = Write::Open;
        self.is_paused = false;
        self.pinged_at = None;
        self.peer_ttl = None;
        self.full_since = None;
        self.phase = Phase::Waiting { until };
    }

    /// Gives the read buffer back, with whatever stands in it.
    pub(super) fn release(&mut self, buffers: &mut Buffers) {
        self.read_at = 0;
        self.need = 0;
        self.expect = 0;
        if self.read.capacity() > 0 {
            buffers.give_back(std::mem::take(&mut self.read));
        }
    }

    /// Has the shard's account of memory know what stands in the outbox, and takes back what was
    /// lent to it.
    pub(super) fn settle_outbox(&mut self, buffers: &mut Buffers) {
        let bytes = self.outbox.bytes();
        if bytes != self.outbox_bytes {
            buffers.account(self.outbox_bytes, bytes);
            self.outbox_bytes = bytes;
        }
        while let Some(spent) = self.outbox.take_spent() {
            buffers.keep(spent);
        }
    }

    /// Has the poller watch the socket for what matters now.
    pub(super) fn watch(&mut self, token: Token, io: &Io) -> Result<(), Errno> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let wanted = Interest {
            readable: !self.is_paused && !matches!(self.phase, Phase::Connecting { .. }),
            writable: self.write == Write::Awaited
                || matches!(self.phase, Phase::Connecting { .. }),
        };
        match self.watched {
            Some(watched) if watched == wanted => return Ok(()),
            Some(_) => io.poller.modify(socket, token, wanted)?,
            None => io.poller.add(socket, token, wanted)?,
        }
        self.watched = Some(wanted);
        Ok(())
    }

    /// Leaves the poller's set: from now on the socket is asked directly.
    pub(super) fn unwatch(&mut self, io: &Io) {
        // The poller alone knows when a socket that took no more does again.
        if self.write != Write::Awaited
            && let (Some(socket), Some(_)) = (&self.socket, self.watched)
            && io.poller.remove(socket).is_ok()
        {
            self.watched = None;
        }
    }

    /// What time does to a connection, and when to look again.
    pub(super) fn on_time(&mut self, now: Instant, options: &EngineOptions) -> Result<Tick, Lost> {
        match self.phase {
            Phase::Waiting { until } => Ok(Tick::dial_if(until <= now, until)),
            Phase::Resolving { until } => Ok(Tick::dial_if(until <= now, until)),
            Phase::Connecting { until } | Phase::Greeting { until, .. } if until <= now => {
                Err(Lost::HandshakeTime)
            }
            Phase::Connecting { until } => Ok(Tick::Again(until)),
            // It may be up by then, and its heartbeats due long before.
            Phase::Greeting { until, .. } => {
                Ok(Tick::Again(until.min(now + options.heartbeat_interval)))
            }
            Phase::Up => self.check_heartbeat(now, options),
        }
    }

    fn check_heartbeat(&mut self, now: Instant, options: &EngineOptions) -> Result<Tick, Lost> {
        let mut next = now + options.heartbeat_interval;
        self.outbox.rest();
        if self.is_backed_up(self.is_paused && !self.outbox.is_held()) {
            let cut_at = *self.full_since.get_or_insert(now) + options.slow_consumer;
            if cut_at <= now {
                return Err(Lost::SlowConsumer);
            }
            next = next.min(cut_at);
        } else if self.write == Write::Awaited {
            // Nothing is flushed until the socket takes more: only this sees the queue fill up.
            next = next.min(now + options.slow_consumer);
        }
        // Who is not read cannot be heard.
        if !self.has_heartbeats || self.is_paused {
            self.pinged_at = None;
            return Ok(Tick::Again(next));
        }
        let ping_at = self.heard_at + options.heartbeat_interval;
        match self.pinged_at {
            None if now < ping_at => next = next.min(ping_at),
            None => {
                let ttl_ds = options.heartbeat_timeout.as_millis() / 100;
                let ttl_ds = u16::try_from(ttl_ds).unwrap_or(u16::MAX);
                write_ping(ttl_ds, &[], &mut self.control);
                self.pinged_at = Some(now);
                return Ok(Tick::Write(next.min(now + self.patience(options))));
            }
            // Silence counts from our own PING: however long this shard was stalled, its peers
            // have had their time to answer.
            Some(pinged_at) => {
                let lost_at = pinged_at + self.patience(options);
                if lost_at <= now {
                    return Err(Lost::Silent);
                }
                next = next.min(lost_at);
            }
        }
        Ok(Tick::Again(next))
    }

    /// How long an answer to a PING may take: what the limits leave of the timeout, and no longer
    /// than the peer itself has said.
    fn patience(&self, options: &EngineOptions) -> Duration {
        let rest = options.heartbeat_timeout - options.heartbeat_interval;
        let rest = rest.max(options.heartbeat_interval);
        self.peer_ttl.map_or(rest, |ttl| ttl.min(rest))
    }

    /// Whether something waits to be read.
    pub(super) fn has_arrived(&self) -> bool {
        let peek = |socket| recv(socket, &mut [0; 1], RecvFlags::PEEK);
        let peeked = self.socket.as_ref().map(peek);
        peeked.is_some_and(|it| it.is_ok_and(|(_, bytes)| bytes > 0))
    }

    /// Something has arrived.
    #[inline]
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.pinged_at = None;
    }
}

/// What a connection's timer asks for.
pub(super) enum Tick {
    /// Look again then.
    Again(Instant),
    /// Something was written; look again then.
    Write(Instant),
    /// It is time to dial.
    Dial,
}

impl Tick {
    fn dial_if(is_due: bool, until: Instant) -> Self {
        match is_due {
            true => Self::Dial,
            false => Self::Again(until),
        }
    }
}

fn split_limits(options: &EngineOptions) -> SplitLimits {
    let bytes_max = options.message_bytes_max;
    SplitLimits {
        payload_bytes_max: bytes_max,
        header_bytes_max: HEADER_BYTES_MAX,
        frames_max: options.frames_max,
        command_bytes_max: COMMAND_BYTES_MAX,
        skip_bytes_max: SKIPPED_TIMES.saturating_mul(bytes_max as u64),
    }
}
