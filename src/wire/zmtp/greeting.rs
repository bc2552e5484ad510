use std::ops::Range;

use crate::error::ZmtpError;

/// Bytes of a greeting.
pub const GREETING_BYTES: usize = 64;

const SIGNATURE_FIRST: u8 = 0xff;
const SIGNATURE_LAST: u8 = 0x7f;
const SIGNATURE_LAST_AT: usize = 9;
const MAJOR_AT: usize = 10;
const MINOR_AT: usize = 11;
const MECHANISM: Range<usize> = 12..32;

const MAJOR: u8 = 3;
const MINOR: u8 = 1;
const NULL: &[u8; 20] = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// What we greet with: ZMTP 3.1, NULL. The flag as-server and the filler stay zero.
pub(super) fn write_greeting(out: &mut Vec<u8>) {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = SIGNATURE_FIRST;
    greeting[SIGNATURE_LAST_AT] = SIGNATURE_LAST;
    greeting[MAJOR_AT] = MAJOR;
    greeting[MINOR_AT] = MINOR;
    greeting[MECHANISM].copy_from_slice(NULL);
    out.extend_from_slice(&greeting);
}

/// Checks as much of the peer's greeting as has arrived: the first wrong byte refuses it, so that a
/// peer of another protocol, which may wait for us before it says more, is told at once. Returns
/// the minor version once the greeting is whole.
///
/// The padding within the signature may be anything (libzmq puts a length there), and so may the
/// filler. As-server means nothing to NULL.
pub(super) fn read_greeting(input: &[u8]) -> Result<Option<u8>, ZmtpError> {
    let arrived = &input[..input.len().min(GREETING_BYTES)];
    for (at, expected) in [(0, SIGNATURE_FIRST), (SIGNATURE_LAST_AT, SIGNATURE_LAST)] {
        match arrived.get(at) {
            Some(&found) if found != expected => return Err(ZmtpError::Signature { at, found }),
            _ => {}
        }
    }
    if let Some(&major) = arrived.get(MAJOR_AT).filter(|&&major| major < MAJOR) {
        return Err(ZmtpError::Version { major });
    }
    let mechanism = arrived.get(MECHANISM.start..).unwrap_or_default();
    if let Some(wrong) = mechanism.iter().zip(NULL).position(|(a, b)| a != b) {
        let begins = String::from_utf8_lossy(&mechanism[..=wrong]).into_owned();
        return Err(ZmtpError::Mechanism { begins });
    }
    Ok((arrived.len() == GREETING_BYTES).then(|| arrived[MINOR_AT]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Vec<u8> {
        let mut greeting = Vec::new();
        write_greeting(&mut greeting);
        greeting
    }

    /// Ours with one byte changed.
    fn with(at: usize, byte: u8) -> Vec<u8> {
        let mut greeting = ours();
        greeting[at] = byte;
        greeting
    }

    /// It is refused as soon as byte `at` is there, and not before.
    #[track_caller]
    fn assert_refused_at(greeting: &[u8], at: usize, error: ZmtpError) {
        assert_eq!(read_greeting(&greeting[..at]), Ok(None));
        assert_eq!(read_greeting(&greeting[..=at]), Err(error.clone()));
        assert_eq!(read_greeting(greeting), Err(error));
    }

    #[test]
    fn ours_is_as_the_rfc_says() {
        let greeting = ours();
        assert_eq!(greeting[..16], *b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01NULL");
        assert_eq!(greeting[16..], [0; 48]);
        for bytes in 0..GREETING_BYTES {
            assert_eq!(read_greeting(&greeting[..bytes]), Ok(None));
        }
        assert_eq!(read_greeting(&greeting), Ok(Some(1)));
    }

    #[test]
    fn padding_filler_as_server_and_later_versions_are_let_pass() {
        for at in (1..9).chain(32..64) {
            assert_eq!(read_greeting(&with(at, 0xee)), Ok(Some(1)));
        }
        assert_eq!(read_greeting(&with(MAJOR_AT, 4)), Ok(Some(1)));
        assert_eq!(read_greeting(&with(MINOR_AT, 0)), Ok(Some(0)));
        assert_eq!(read_greeting(&[ours(), vec![9; 9]].concat()), Ok(Some(1)));
    }

    #[test]
    fn version_1_and_strangers_are_refused_by_the_signature() {
        // An anonymous peer of ZMTP 1: the frame of an empty identity.
        let found = 1;
        assert_refused_at(&[1, 0], 0, ZmtpError::Signature { at: 0, found });
        // One with a long identity, whose length is in the form that FF begins.
        let identity = [&[0xff, 0, 0, 0, 0, 0, 0, 1, 1, 0][..], &[b'i'; 256]].concat();
        assert_refused_at(&identity, 9, ZmtpError::Signature { at: 9, found: 0 });
        let found = b'G';
        assert_refused_at(b"GET / HTTP/1.1", 0, ZmtpError::Signature { at: 0, found });
    }

    #[test]
    fn version_2_is_refused() {
        // Signature, revision 1, socket type DEALER, an empty identity's frame.
        let greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x05\0\0";
        assert_refused_at(greeting, 10, ZmtpError::Version { major: 1 });
        for major in 0..3 {
            assert_refused_at(&with(MAJOR_AT, major), 10, ZmtpError::Version { major });
        }
    }

    #[test]
    fn other_mechanisms_are_refused() {
        let mut curve = ours();
        curve[12..17].copy_from_slice(b"CURVE");
        let begins = |begins: &str| ZmtpError::Mechanism {
            begins: begins.to_owned(),
        };
        assert_refused_at(&curve, 12, begins("C"));
        assert_refused_at(&with(14, b'M'), 14, begins("NUM"));
        assert_refused_at(&with(16, b'S'), 16, begins("NULLS"));
        assert_refused_at(
            &with(31, 1),
            31,
            begins("NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\u{1}"),
        );
    }
}
