//! From the socket to the shard: what has arrived, in place.

use std::time::Duration;

use quanta::Instant;
use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{
    Io,
    buffers::READ_BYTES,
    link::{Link, Phase},
};
use crate::{
    engine::{ConnectionId, Event, Incoming},
    error::Lost,
    wire::{
        Reason, Received,
        zmtp::{Command, Unit, write_pong},
    },
};

/// A buffer with less room than this behind what it holds is not worth a read.
const ROOM_BYTES_MIN: usize = 4 << 10;
/// The parts of a message that a quiet connection holds are moved into a buffer of their own up to
/// this size; beyond it the whole buffer stays.
const SHRUNK_BYTES_MAX: usize = 4 << 10;

/// Heartbeats that wait to leave, at most.
const CONTROL_BYTES_MAX: usize = 4 << 10;

/// What reading a connection came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Harvest {
    /// Messages and other events handed on.
    pub(super) events: usize,
    /// Whether anything arrived.
    pub(super) heard: bool,
    /// Whether there is, or may be, more now.
    pub(super) more: bool,
}

/// What one read from the socket brought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// All there was.
    All,
    /// As much as there was room for.
    Some,
    Nothing,
}

impl Link {
    /// Hands on what is whole, reads once if that leaves something to be desired, and hands on what
    /// has become whole: at most `messages_max` messages.
    pub(super) fn harvest(
        &mut self,
        id: ConnectionId,
        now: Instant,
        messages_max: usize,
        io: &mut Io,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<Harvest, Lost> {
        let mut harvest = Harvest::default();
        if self.read_at < self.read.len() && self.is_up() {
            let was_paused = self.is_paused;
            harvest.events = self.hand_on(id, messages_max, io, sink)?;
            if harvest.events >= messages_max || self.is_paused {
                harvest.more = !self.is_paused;
                // The poller is to learn of it, or it would tell for ever of what is not read.
                harvest.heard = self.is_paused && !was_paused;
                return Ok(harvest);
            }
        }
        if self.is_paused {
            return Ok(harvest);
        }
        let fill = self.fill(io)?;
        self.note_age(fill, now, io);
        if fill == Fill::Nothing {
            return Ok(harvest);
        }
        harvest.heard = true;
        self.heard(now);
        if let Phase::Greeting { .. } = self.phase {
            harvest.events += self.shake_hands(id, io, sink)?;
        }
        if self.is_up() {
            let room = messages_max - harvest.events;
            harvest.events += self.hand_on(id, room, io, sink)?;
        }
        // What is left within the budget is not whole yet.
        harvest.more = (fill == Fill::Some || harvest.events >= messages_max) && !self.is_paused;
        Ok(harvest)
    }

    /// Takes down since when what was just read may have waited.
    #[inline]
    fn note_age(&mut self, fill: Fill, now: Instant, io: &Io) {
        if fill != Fill::Nothing {
            self.since = self.emptied_at.max(io.woke_at);
        }
        if fill != Fill::Some {
            self.emptied_at = now;
        }
    }

    /// Hands on whole messages, and answers PINGs.
    fn hand_on(
        &mut self,
        id: ConnectionId,
        messages_max: usize,
        io: &mut Io,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<usize, Lost> {
        let mut count = 0;
        let is_tight = !io.buffers.has_room(0);
        while count < messages_max && self.read_at < self.read.len() {
            if self.is_congested(is_tight) {
                self.is_paused = true;
                break;
            }
            let at = self.read_at;
            let input = &self.read[at..];
            match self.splitter.next(input)? {
                Unit::Message {
                    header,
                    payload,
                    end,
                } => {
                    self.read_at = at + end;
                    self.expect = if end > READ_BYTES { end } else { 0 };
                    let (header, payload) = (shift(header, at), shift(payload, at));
                    let held = self.read.capacity();
                    let mut taken = false;
                    sink(Event::Message(Incoming {
                        connection: id,
                        since: Some(self.since),
                        message: Received::within(&mut self.read, header, payload, &mut taken),
                        outbox: &mut self.outbox,
                    }));
                    if taken {
                        self.read_at = 0;
                        io.buffers.account(held, self.read.capacity());
                    }
                    count += 1;
                }
                unit => match self.hand_on_rare(unit, id, io, sink)? {
                    Some(events) => count += events,
                    None => break,
                },
            }
        }
        if self.read_at == self.read.len() {
            self.read_at = 0;
            self.read.clear();
            if self.need == 0 {
                self.let_go_of_buffer(io);
            }
        }
        Ok(count)
    }

    /// Everything but a whole message. `None`: more must arrive first.
    #[cold]
    fn hand_on_rare(
        &mut self,
        unit: Unit,
        id: ConnectionId,
        io: &mut Io,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<Option<usize>, Lost> {
        let at = self.read_at;
        match unit {
            Unit::Need { bytes, header } => {
                let grows = bytes > READ_BYTES && bytes > self.read.capacity();
                let has_room = io.buffers.has_room(if grows { bytes } else { 0 });
                if bytes > SHRUNK_BYTES_MAX && header.is_some() && !has_room {
                    let unit = self.splitter.skip(&self.read[at..])?;
                    return self.decline(unit, Reason::Overloaded, id, sink).map(Some);
                }
                self.need = bytes;
                return Ok(None);
            }
            Unit::Command { body, end } => {
                let ttl = answer_command(&self.read[shift(body, at)], &mut self.control)?;
                self.peer_ttl = ttl.or(self.peer_ttl);
                self.read_at += end;
            }
            Unit::Skipped { end } => self.read_at += end,
            Unit::TooLarge { .. } => {
                return self.decline(unit, Reason::TooLarge, id, sink).map(Some);
            }
            Unit::Malformed { frames, end } => {
                self.read_at += end;
                sink(Event::Malformed {
                    connection: id,
                    frames,
                });
                return Ok(Some(1));
            }
            Unit::Message { .. } => unreachable!("is no rare unit"),
        }
        Ok(Some(0))
    }

    fn decline(
        &mut self,
        unit: Unit,
        reason: Reason,
        id: ConnectionId,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<usize, Lost> {
        let Unit::TooLarge { header, end, .. } = unit else {
            return Ok(0);
        };
        let at = self.read_at;
        self.read_at += end;
        sink(Event::Declined {
            connection: id,
            header: &self.read[shift(header, at)],
            reason,
            outbox: &mut self.outbox,
        });
        Ok(1)
    }

    fn shake_hands(
        &mut self,
        id: ConnectionId,
        io: &mut Io,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<usize, Lost> {
        let Phase::Greeting { handshake, .. } = &mut self.phase else {
            return Ok(0);
        };
        let progress = handshake.advance(&self.read[self.read_at..], &mut self.control)?;
        self.read_at += progress.consumed;
        let Some(introduction) = progress.done else {
            return Ok(0);
        };
        self.has_heartbeats = introduction.minor >= 1;
        if let Some(dial) = &mut self.dial {
            dial.succeeded();
        } else {
            io.greeting -= 1;
        }
        self.phase = Phase::Up;
        sink(Event::Up(id));
        Ok(1)
    }

    /// Reads once, into a buffer with room for what is expected.
    fn fill(&mut self, io: &mut Io) -> Result<Fill, Lost> {
        self.make_room(io);
        let Some(socket) = &self.socket else {
            return Ok(Fill::Nothing);
        };
        let fill = loop {
            match recv(socket, spare_capacity(&mut self.read), RecvFlags::empty()) {
                Ok((0, _)) => return Err(Lost::Closed),
                Ok(_) if self.read.len() < self.read.capacity() => break Fill::All,
                Ok(_) => break Fill::Some,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break Fill::Nothing,
                Err(errno) => return Err(Lost::Broken(errno.to_string())),
            }
        };
        io.stats.reads += 1;
        if fill == Fill::Nothing {
            io.stats.empty_reads += 1;
            if self.read.is_empty() {
                self.let_go_of_buffer(io);
            }
        }
        Ok(fill)
    }

    /// Nothing stands in the buffer. One that is read each turn keeps it, if it is an ordinary one.
    #[inline]
    fn let_go_of_buffer(&mut self, io: &mut Io) {
        if !self.is_hot || self.expect > 0 || self.read.capacity() != READ_BYTES {
            io.buffers.give_back(std::mem::take(&mut self.read));
        }
    }

    #[inline]
    fn make_room(&mut self, io: &mut Io) {
        if self.read.capacity() == 0 {
            let mut wanted = self.need;
            // To expect is no leave to hold.
            if self.expect > wanted && io.buffers.has_room(self.expect) {
                wanted = self.expect;
            }
            self.read = io.buffers.take(wanted);
        } else if !self.read.is_empty() {
            self.make_room_behind(io);
        }
        self.need = 0;
    }

    fn make_room_behind(&mut self, io: &mut Io) {
        if self.read_at > 0 {
            self.read.drain(..self.read_at);
            self.read_at = 0;
        }
        let held = self.read.len();
        // Whoever sends the end of a large message in crumbs must not have us copy it for each.
        let wanted = match self.need > held {
            true => self.need,
            false => held + ROOM_BYTES_MIN,
        };
        if wanted > self.read.capacity() {
            let mut larger = io.buffers.take(wanted);
            larger.extend_from_slice(&self.read);
            io.buffers
                .give_back(std::mem::replace(&mut self.read, larger));
        }
    }

    /// The connection is quiet, perhaps in the middle of a message: it keeps no large buffer for
    /// that.
    pub(super) fn rest(&mut self, io: &mut Io) {
        let held = self.read.len() - self.read_at;
        let capacity = self.read.capacity();
        // A larger one is kept only for the message that needs it.
        let is_kept = capacity > READ_BYTES && self.need > READ_BYTES;
        if is_kept || capacity < READ_BYTES {
            return;
        }
        if held == 0 {
            io.buffers.give_back(std::mem::take(&mut self.read));
            self.read_at = 0;
        } else if held <= SHRUNK_BYTES_MAX {
            self.read.drain(..self.read_at);
            self.read_at = 0;
            io.buffers.shrink(&mut self.read);
        }
    }
}

/// Answers a PING. Returns how long its sender may be silent.
fn answer_command(body: &[u8], out: &mut Vec<u8>) -> Result<Option<Duration>, Lost> {
    match Command::decode(body)? {
        Command::Ping { ttl_ds, context } => {
            // Whoever sends PINGs and reads no PONG gets no more of them.
            if out.len() < CONTROL_BYTES_MAX {
                write_pong(context, out);
            }
            let ttl = Duration::from_millis(100 * u64::from(ttl_ds));
            Ok((ttl_ds > 0).then_some(ttl))
        }
        Command::Error { reason } => {
            Err(Lost::Refused(String::from_utf8_lossy(reason).into_owned()))
        }
        // PONG was heard, and that is all it is for; unknown ones are for others.
        _ => Ok(None),
    }
}

fn shift(range: std::ops::Range<usize>, by: usize) -> std::ops::Range<usize> {
    range.start + by..range.end + by
}
