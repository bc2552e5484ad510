//! From the outbox to the socket: one write per connection and turn.

use std::io::IoSlice;

use quanta::Instant;
use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendFlags, send, sendmsg},
};

use super::{
    Io,
    link::{Link, Phase, Write},
};
use crate::error::Lost;

/// Pieces that one vectored write takes.
const SLICES_MAX: usize = 32;
/// A dead peer is an error of the write, and no signal.
const FLAGS: SendFlags = SendFlags::NOSIGNAL;

impl Link {
    /// Writes what waits, as far as the socket takes it. Returns how many messages have left.
    pub(super) fn flush(&mut self, now: Instant, io: &mut Io) -> Result<usize, Lost> {
        if !matches!(self.phase, Phase::Up | Phase::Greeting { .. }) {
            return Ok(0);
        }
        io.outgoing_most = io.outgoing_most.max(self.outbox.messages());
        let mut messages = 0;
        let mut is_open = true;
        while is_open && self.has_pending() {
            if self.is_control_next() {
                is_open = self.write_control(io)?;
            } else {
                let (count, open) = self.write_outbox(io)?;
                messages += count;
                is_open = open;
            }
        }
        self.write = match (is_open, self.write) {
            (true, _) => Write::Open,
            (false, Write::Awaited) => Write::Awaited,
            (false, _) => Write::Retried,
        };
        self.settle_outbox(&mut io.buffers);
        let is_tight = !io.buffers.has_room(0);
        self.full_since = match self.is_backed_up(is_tight) {
            true => self.full_since.or(Some(now)),
            false => None,
        };
        Ok(messages)
    }

    /// Gives a peer that is being left what is to be said to it in a command, if it takes it now.
    pub(super) fn flush_last_words(&mut self, io: &mut Io) -> Result<(), Lost> {
        if self.is_control_next() {
            self.write_control(io)?;
        }
        Ok(())
    }

    pub(super) fn has_pending(&self) -> bool {
        self.control_left < self.control.len() || !self.outbox.is_empty()
    }

    /// Commands go between messages; one that has begun to leave goes on.
    fn is_control_next(&self) -> bool {
        self.control_left < self.control.len()
            && (self.control_left > 0 || self.outbox.is_between_messages())
    }

    /// Whether the socket took all of it.
    fn write_control(&mut self, io: &mut Io) -> Result<bool, Lost> {
        let Some(socket) = &self.socket else {
            return Ok(false);
        };
        let waiting = &self.control[self.control_left..];
        let written = io.count_write(|| send(socket, waiting, FLAGS))?;
        self.control_left += written;
        let is_whole = self.control_left == self.control.len();
        if is_whole {
            self.control.clear();
            self.control_left = 0;
        }
        Ok(is_whole)
    }

    /// How many messages have left, and whether the socket may take more.
    fn write_outbox(&mut self, io: &mut Io) -> Result<(usize, bool), Lost> {
        let Some(socket) = &self.socket else {
            return Ok((0, false));
        };
        let (offered, written) = match self.outbox.contiguous() {
            Some(bytes) => (bytes.len(), io.count_write(|| send(socket, bytes, FLAGS))?),
            None => {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = self.outbox.slices(&mut slices);
                let slices = &slices[..count];
                let offered = slices.iter().map(|slice| slice.len()).sum();
                let write = || sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), FLAGS);
                (offered, io.count_write(write)?)
            }
        };
        // A short write says that the socket's buffer is full: to try again would say it once more.
        Ok((self.outbox.advance(written), written == offered))
    }
}

impl Io {
    /// Writes until it is not interrupted. 0: the socket takes no more now.
    fn count_write(
        &mut self,
        mut write: impl FnMut() -> Result<usize, Errno>,
    ) -> Result<usize, Lost> {
        loop {
            self.stats.writes += 1;
            match write() {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    self.stats.refused_writes += 1;
                    return Ok(0);
                }
                result => return result.map_err(|errno| Lost::Broken(errno.to_string())),
            }
        }
    }
}
