use crate::error::ZmtpError;

/// Flags: more frames of this message follow; the length takes eight bytes; a command.
pub(super) const MORE: u8 = 1;
pub(super) const LONG: u8 = 2;
pub(super) const COMMAND: u8 = 4;
/// Bit n is set if n is a value that flags may have: no reserved bit, and no command with more.
const ALLOWED_FLAGS: u8 = 0b0101_1111;

/// Bytes of flags and length, in the short form and in the long one.
pub(super) const SHORT_HEAD_BYTES: usize = 2;
pub(super) const LONG_HEAD_BYTES: usize = 9;
/// The longest body that the short form tells.
pub(super) const SHORT_BODY_BYTES_MAX: usize = 255;

/// Flags and length of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Another frame of the same message follows.
    pub more: bool,
    /// It is a command, and no part of a message.
    pub command: bool,
    /// Bytes before the body: 2, or 9 in the long form.
    pub head_bytes: usize,
    /// Bytes of the body.
    pub body_bytes: usize,
}

/// Reads what stands before a frame's body; `None` if more bytes are needed for that. The long form
/// may carry a length that the short one would do for.
#[inline]
pub fn frame_head(input: &[u8]) -> Result<Option<FrameHead>, ZmtpError> {
    let Some(&flags) = input.first() else {
        return Ok(None);
    };
    if flags > 7 || (ALLOWED_FLAGS >> flags) & 1 == 0 {
        return Err(refused_flags(flags));
    }
    let (head_bytes, body_bytes) = if flags & LONG == 0 {
        let Some(&length) = input.get(1) else {
            return Ok(None);
        };
        (SHORT_HEAD_BYTES, usize::from(length))
    } else {
        let Some(length) = input[1..].first_chunk() else {
            return Ok(None);
        };
        (LONG_HEAD_BYTES, long_length(u64::from_be_bytes(*length))?)
    };
    Ok(Some(FrameHead {
        more: flags & MORE != 0,
        command: flags & COMMAND != 0,
        head_bytes,
        body_bytes,
    }))
}

/// How many bytes the head takes that begins `input`, as far as its first byte says.
pub(super) fn head_bytes_needed(input: &[u8]) -> usize {
    match input.first() {
        Some(flags) if flags & LONG != 0 => LONG_HEAD_BYTES,
        _ => SHORT_HEAD_BYTES,
    }
}

#[cold]
fn refused_flags(flags: u8) -> ZmtpError {
    match flags & !(MORE | LONG | COMMAND) {
        0 => ZmtpError::CommandWithMore,
        _ => ZmtpError::ReservedFlags(flags),
    }
}

/// The RFC keeps bit 63 zero.
#[inline]
fn long_length(length: u64) -> Result<usize, ZmtpError> {
    match usize::try_from(length) {
        Ok(bytes) if length >> 63 == 0 => Ok(bytes),
        _ => Err(ZmtpError::Length(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(flags: u8, length: u64) -> Vec<u8> {
        [&[flags], &length.to_be_bytes()[..]].concat()
    }

    #[test]
    fn heads_of_both_forms_are_read() {
        let head = |more, command, head_bytes, body_bytes| {
            Ok(Some(FrameHead {
                more,
                command,
                head_bytes,
                body_bytes,
            }))
        };
        assert_eq!(frame_head(&[0, 0]), head(false, false, 2, 0));
        assert_eq!(frame_head(&[1, 40, 9, 9]), head(true, false, 2, 40));
        assert_eq!(frame_head(&[4, 255]), head(false, true, 2, 255));
        assert_eq!(frame_head(&long(3, 40)), head(true, false, 9, 40));
        assert_eq!(frame_head(&long(6, 1 << 40)), head(false, true, 9, 1 << 40));
    }

    #[test]
    fn a_head_that_is_cut_short_needs_more() {
        let whole = long(2, 300);
        for bytes in 0..whole.len() {
            assert_eq!(frame_head(&whole[..bytes]), Ok(None));
        }
        assert_eq!(frame_head(&[1]), Ok(None));
        let needed = [&[][..], &[1], &[2], &[6, 0]].map(head_bytes_needed);
        assert_eq!(needed, [2, 2, 9, 9]);
    }

    #[test]
    fn bad_flags_are_refused_at_the_first_byte() {
        for flags in 8..=255 {
            assert_eq!(
                frame_head(&[flags]),
                Err(ZmtpError::ReservedFlags(flags)),
                "{flags}"
            );
        }
        for flags in [5, 7] {
            assert_eq!(frame_head(&[flags]), Err(ZmtpError::CommandWithMore));
        }
    }

    #[test]
    fn lengths_that_no_memory_holds_are_refused() {
        for length in [1 << 63, (1 << 63) + 1, u64::MAX - 1, u64::MAX] {
            assert_eq!(frame_head(&long(2, length)), Err(ZmtpError::Length(length)));
        }
        let largest = frame_head(&long(2, (1 << 63) - 1)).unwrap().unwrap();
        assert_eq!(largest.body_bytes as u64, (1 << 63) - 1);
    }
}
