use std::ops::Range;

use super::frame::{LONG_HEAD_BYTES, MORE, SHORT_HEAD_BYTES, head_bytes_needed};
use super::{FrameHead, frame_head};
use crate::error::ZmtpError;

/// Splits a connection's byte stream into units, after the handshake.
///
/// The bytes stay with the caller: `input` is what has arrived and is not consumed, each unit says
/// where its parts stand in there, and its `end` is how much of it is consumed. Nothing allocates.
///
/// # Commands within a message
///
/// A peer may send a command between the two frames of a message; libzmq does so with its PINGs.
/// Such a command comes with an `end` of 0: it is given out once, nothing is consumed, and the next
/// call goes on behind it, so that the message, when it is whole, still has its header in the
/// input. All such commands of one message may take `command_bytes_max` bytes and one head.
#[derive(Debug)]
pub struct Splitter {
    limits: SplitLimits,
    state: State,
}

/// What a stranger may make us read. Lengths are of a frame's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitLimits {
    /// A longer payload is not kept.
    pub payload_bytes_max: usize,
    /// A longer header frame is an error.
    pub header_bytes_max: usize,
    /// A message of more frames is an error; at least 2.
    pub frames_max: usize,
    /// A longer command is an error.
    pub command_bytes_max: usize,
    /// A longer frame is an error, unless it is a payload that may be kept: it is not even skipped.
    pub skip_bytes_max: u64,
}

/// What stands at the beginning of the input. Ranges and ends count from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unit {
    /// At least so many bytes must stand in the input before the next call can say more.
    Need {
        /// So many; at most [`SplitLimits::need_bytes_max`].
        bytes: usize,
        /// The header, once only the payload's body is missing: then the caller may
        /// [`Splitter::skip`] the message instead of making room for it.
        header: Option<Range<usize>>,
    },
    /// A message of two frames, whole.
    Message {
        /// The first frame's body.
        header: Range<usize>,
        /// The second frame's body.
        payload: Range<usize>,
        /// Behind the message.
        end: usize,
    },
    /// A command.
    Command {
        /// Its name and data, for [`Command::decode`](super::Command::decode).
        body: Range<usize>,
        /// Behind the command; 0 if it stands within a message.
        end: usize,
    },
    /// A message whose payload is not kept. It is skipped as it arrives: `Skipped` units follow.
    TooLarge {
        /// The first frame's body.
        header: Range<usize>,
        /// Bytes of the payload.
        payload_bytes: u64,
        /// Behind the head of the payload's frame.
        end: usize,
    },
    /// A message of one frame or of more than two came to its end; none of it was kept.
    Malformed {
        /// How many frames it had.
        frames: usize,
        /// Behind what stood of it in the input.
        end: usize,
    },
    /// Bytes of a message that is not kept.
    Skipped {
        /// Behind them.
        end: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The input begins with a message or a command.
    Between,
    /// The input begins with a header's frame. The commands that stand behind it have been given
    /// out; they end at `commands_end`.
    Within { commands_end: usize },
    /// The input begins within a message that is not kept.
    Dropping(Dropping),
}

#[derive(Clone, Copy, Debug)]
struct Dropping {
    /// Bytes of the current frame's body that are yet to come. At 0 the input begins with the next
    /// frame's head, and there is one.
    left_bytes: usize,
    /// Whether another frame follows the current one.
    more: bool,
    /// Frames whose head was read.
    frames: usize,
    /// Whether its end is worth a `Malformed`; else the caller knows of it already.
    malformed: bool,
}

impl Splitter {
    /// A splitter for a stream that begins at a unit.
    pub fn new(limits: SplitLimits) -> Self {
        Self {
            limits,
            state: State::Between,
        }
    }

    /// The unit at the beginning of `input`. After an error the stream means nothing any more.
    #[inline]
    pub fn next(&mut self, input: &[u8]) -> Result<Unit, ZmtpError> {
        if matches!(self.state, State::Between)
            && let Some(message) = self.whole_short_message(input)
        {
            return Ok(message);
        }
        self.next_of_any(input)
    }

    /// What nearly every unit is: two frames of the short form that have arrived in one piece.
    #[inline]
    fn whole_short_message(&self, input: &[u8]) -> Option<Unit> {
        let [MORE, header_bytes] = *input.first_chunk()? else {
            return None;
        };
        let header = range(SHORT_HEAD_BYTES, usize::from(header_bytes));
        let [0, payload_bytes] = *input.get(header.end..)?.first_chunk()? else {
            return None;
        };
        let payload = range(header.end + SHORT_HEAD_BYTES, usize::from(payload_bytes));
        let end = payload.end;
        let fits = end <= input.len()
            && header.len() <= self.limits.header_bytes_max
            && payload.len() <= self.limits.payload_bytes_max;
        fits.then_some(Unit::Message {
            header,
            payload,
            end,
        })
    }

    fn next_of_any(&mut self, input: &[u8]) -> Result<Unit, ZmtpError> {
        match self.state {
            State::Dropping(dropping) => self.drop_on(dropping, input),
            State::Between | State::Within { .. } => self.first_frame(input, Payload::Kept),
        }
    }

    /// Gives up the message whose payload is missing: to be called right after a `Need` with a
    /// header, and returns `TooLarge`, whatever the payload's length is. Where no such message
    /// begins the input, it does what `next` does.
    pub fn skip(&mut self, input: &[u8]) -> Result<Unit, ZmtpError> {
        match self.state {
            State::Dropping(dropping) => self.drop_on(dropping, input),
            State::Between | State::Within { .. } => self.first_frame(input, Payload::Unwanted),
        }
    }

    fn first_frame(&mut self, input: &[u8], wanted: Payload) -> Result<Unit, ZmtpError> {
        let Some(head) = frame_head(input)? else {
            return Ok(need_head(input, 0));
        };
        if head.command {
            return self.command(head, 0, input);
        }
        if !head.more {
            return self.drop_on(Dropping::MALFORMED, input);
        }
        let bytes_max = self.limits.header_bytes_max;
        if head.body_bytes > bytes_max {
            let bytes = head.body_bytes;
            return Err(ZmtpError::HeaderTooLong { bytes, bytes_max });
        }
        let header = range(head.head_bytes, head.body_bytes);
        self.second_frame(header, input, wanted)
    }

    /// What stands behind a header: its payload, or a command first.
    fn second_frame(
        &mut self,
        header: Range<usize>,
        input: &[u8],
        wanted: Payload,
    ) -> Result<Unit, ZmtpError> {
        let at = match self.state {
            State::Within { commands_end } => commands_end,
            _ => header.end,
        };
        let Some(head) = frame_head(input.get(at..).unwrap_or_default())? else {
            return Ok(need_head(input, at));
        };
        let body_at = at + head.head_bytes;
        if head.command {
            return self.command_within(head, at, &header, input);
        }
        if head.more {
            self.check_dropped(head)?;
            self.state = State::Dropping(Dropping {
                left_bytes: head.body_bytes,
                more: true,
                frames: 2,
                ..Dropping::MALFORMED
            });
            return Ok(Unit::Skipped { end: body_at });
        }
        if head.body_bytes > self.limits.payload_bytes_max || wanted == Payload::Unwanted {
            return self.too_large(header, head, body_at);
        }
        let payload = range(body_at, head.body_bytes);
        let end = payload.end;
        if end > input.len() {
            let header = Some(header);
            return Ok(Unit::Need { bytes: end, header });
        }
        self.state = State::Between;
        Ok(Unit::Message {
            header,
            payload,
            end,
        })
    }

    fn too_large(
        &mut self,
        header: Range<usize>,
        head: FrameHead,
        end: usize,
    ) -> Result<Unit, ZmtpError> {
        self.check_dropped(head)?;
        self.state = match head.body_bytes {
            0 => State::Between,
            left_bytes => State::Dropping(Dropping {
                left_bytes,
                more: false,
                frames: 2,
                malformed: false,
            }),
        };
        Ok(Unit::TooLarge {
            header,
            payload_bytes: head.body_bytes as u64,
            end,
        })
    }

    /// The command whose frame begins at `at`.
    fn command(&self, head: FrameHead, at: usize, input: &[u8]) -> Result<Unit, ZmtpError> {
        let bytes_max = self.limits.command_bytes_max;
        if head.body_bytes > bytes_max {
            let bytes = head.body_bytes;
            return Err(ZmtpError::CommandTooLong { bytes, bytes_max });
        }
        let body = range(at + head.head_bytes, head.body_bytes);
        let end = body.end;
        if end > input.len() {
            let header = None;
            return Ok(Unit::Need { bytes: end, header });
        }
        Ok(Unit::Command { body, end })
    }

    /// The command whose frame begins at `at`, between a header and its payload.
    fn command_within(
        &mut self,
        head: FrameHead,
        at: usize,
        header: &Range<usize>,
        input: &[u8],
    ) -> Result<Unit, ZmtpError> {
        let command = self.command(head, at, input)?;
        let bytes_max = self.limits.commands_within_bytes_max();
        if at - header.end > bytes_max - head.head_bytes - head.body_bytes {
            return Err(ZmtpError::CommandsInMessage { bytes_max });
        }
        match command {
            Unit::Command { body, end } => {
                self.state = State::Within { commands_end: end };
                Ok(Unit::Command { body, end: 0 })
            }
            need => Ok(need),
        }
    }

    /// Takes what has arrived of one frame of a message that is not kept.
    fn drop_on(&mut self, mut dropping: Dropping, input: &[u8]) -> Result<Unit, ZmtpError> {
        let mut at = 0;
        if dropping.left_bytes == 0 {
            let Some(head) = frame_head(input)? else {
                return Ok(need_head(input, 0));
            };
            if head.command {
                return self.command(head, 0, input);
            }
            let frames_max = self.limits.frames_max;
            if dropping.frames >= frames_max {
                return Err(ZmtpError::TooManyFrames { frames_max });
            }
            self.check_dropped(head)?;
            dropping.frames += 1;
            dropping.left_bytes = head.body_bytes;
            dropping.more = head.more;
            at = head.head_bytes;
        } else if input.is_empty() {
            let header = None;
            return Ok(Unit::Need { bytes: 1, header });
        }
        let taken = dropping.left_bytes.min(input.len() - at);
        dropping.left_bytes -= taken;
        let end = at + taken;
        self.state = State::Dropping(dropping);
        if dropping.left_bytes > 0 || dropping.more {
            return Ok(Unit::Skipped { end });
        }
        self.state = State::Between;
        let frames = dropping.frames;
        Ok(match dropping.malformed {
            true => Unit::Malformed { frames, end },
            false => Unit::Skipped { end },
        })
    }

    fn check_dropped(&self, head: FrameHead) -> Result<(), ZmtpError> {
        let kept_bytes_max = self.limits.payload_bytes_max as u64;
        let bytes_max = self.limits.skip_bytes_max.max(kept_bytes_max);
        let bytes = head.body_bytes as u64;
        if bytes > bytes_max {
            return Err(ZmtpError::FrameTooLarge { bytes, bytes_max });
        }
        Ok(())
    }
}

impl SplitLimits {
    /// The most that a [`Unit::Need`] asks for: a header's frame, commands, and a payload's frame.
    pub const fn need_bytes_max(&self) -> usize {
        (2 * LONG_HEAD_BYTES)
            .saturating_add(self.header_bytes_max)
            .saturating_add(self.commands_within_bytes_max())
            .saturating_add(self.payload_bytes_max)
    }

    /// Of all commands between a header and its payload, heads included.
    const fn commands_within_bytes_max(&self) -> usize {
        self.command_bytes_max.saturating_add(LONG_HEAD_BYTES)
    }
}

impl Dropping {
    /// A message that begins with the input, and is none of ours.
    const MALFORMED: Dropping = Dropping {
        left_bytes: 0,
        more: true,
        frames: 0,
        malformed: true,
    };
}

/// Whether a payload within the limits is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Payload {
    Kept,
    Unwanted,
}

/// Saturates where a limit of all memory lets a length of all memory pass; no input is that long.
fn range(at: usize, bytes: usize) -> Range<usize> {
    at..at.saturating_add(bytes)
}

fn need_head(input: &[u8], at: usize) -> Unit {
    let head_bytes = head_bytes_needed(input.get(at..).unwrap_or_default());
    Unit::Need {
        bytes: at.saturating_add(head_bytes),
        header: None,
    }
}

#[cfg(test)]
mod tests;
