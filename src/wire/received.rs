use std::ops::Range;

use bytes::Bytes;

use super::ATTACHED_BYTES_MIN;

/// A message of two frames that has arrived, still where it was read to.
///
/// Whoever handles it in place borrows; whoever keeps a large payload takes the buffer along, and
/// nothing is copied.
#[derive(Debug)]
pub struct Received<'a>(Place<'a>);

#[derive(Debug)]
enum Place<'a> {
    Apart {
        header: &'a [u8],
        payload: &'a mut [u8],
    },
    Within {
        buffer: &'a mut Vec<u8>,
        header: Range<usize>,
        payload: Range<usize>,
        taken: &'a mut bool,
    },
}

impl<'a> Received<'a> {
    /// One whose frames stand apart, in memory that cannot be given away.
    pub fn apart(header: &'a [u8], payload: &'a mut [u8]) -> Self {
        Self(Place::Apart { header, payload })
    }

    /// One that stands within a buffer, at these places. If the buffer is taken, what stood in it
    /// behind the payload is left in its place, at the beginning, and `taken` is set.
    pub fn within(
        buffer: &'a mut Vec<u8>,
        header: Range<usize>,
        payload: Range<usize>,
        taken: &'a mut bool,
    ) -> Self {
        Self(Place::Within {
            buffer,
            header,
            payload,
            taken,
        })
    }

    /// The header frame, not yet decoded.
    #[inline]
    pub fn header(&self) -> &[u8] {
        match &self.0 {
            Place::Apart { header, .. } => header,
            Place::Within { buffer, header, .. } => &buffer[header.clone()],
        }
    }

    /// The payload, to be parsed in place. Empty once it is taken.
    #[inline]
    pub fn payload(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Place::Apart { payload, .. } => payload,
            Place::Within {
                buffer, payload, ..
            } => &mut buffer[payload.clone()],
        }
    }

    /// Bytes of the payload.
    #[inline]
    pub fn payload_bytes(&self) -> usize {
        match &self.0 {
            Place::Apart { payload, .. } => payload.len(),
            Place::Within { payload, .. } => payload.len(),
        }
    }

    /// The payload, to be kept. A large one that stands in a buffer takes the buffer along;
    /// otherwise it is copied. Allocates.
    pub fn take_bytes(&mut self) -> Bytes {
        if self.payload_bytes() < ATTACHED_BYTES_MIN {
            return Bytes::copy_from_slice(self.payload());
        }
        let (buffer, payload) = self.take_buffer();
        Bytes::from(buffer).slice(payload)
    }

    /// The buffer that holds the payload, and where. Copies only where it cannot be given away.
    pub fn take_buffer(&mut self) -> (Vec<u8>, Range<usize>) {
        match &mut self.0 {
            Place::Apart { header, payload } => {
                *header = &[];
                let payload = std::mem::take(payload);
                (payload.to_vec(), 0..payload.len())
            }
            Place::Within {
                buffer,
                header,
                payload,
                taken,
            } => {
                let rest = buffer[payload.end..].to_vec();
                let given = std::mem::replace(*buffer, rest);
                **taken = true;
                *header = 0..0;
                (given, std::mem::replace(payload, 0..0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_buffer_leaves_what_stood_behind_it() {
        let mut buffer = b"..header.payload.next".to_vec();
        let pointer = buffer.as_ptr();
        let mut taken = false;
        let mut received = Received::within(&mut buffer, 2..8, 9..16, &mut taken);
        assert_eq!(received.header(), b"header");
        received.payload()[0] = b'P';
        let (given, place) = received.take_buffer();
        assert_eq!((&given[place], given.as_ptr()), (&b"Payload"[..], pointer));
        assert_eq!((received.header(), received.payload_bytes()), (&b""[..], 0));
        assert!(taken);
        assert_eq!(buffer, b".next");
    }

    #[test]
    fn small_payloads_are_copied_and_large_ones_are_not() {
        for bytes in [10, ATTACHED_BYTES_MIN] {
            let mut buffer = vec![7; bytes];
            let (pointer, mut taken) = (buffer.as_ptr(), false);
            let kept = Received::within(&mut buffer, 0..0, 0..bytes, &mut taken).take_bytes();
            assert_eq!(kept, vec![7; bytes]);
            assert_eq!(kept.as_ptr() == pointer, bytes == ATTACHED_BYTES_MIN);
            assert_eq!(taken, bytes == ATTACHED_BYTES_MIN);
        }
        let (header, mut payload) = ([1; 40], [7; 100]);
        let mut received = Received::apart(&header, &mut payload);
        assert_eq!(received.take_bytes(), vec![7; 100]);
        let (buffer, place) = received.take_buffer();
        assert_eq!(buffer[place], [7; 100]);
        assert_eq!(received.payload_bytes(), 0);
    }
}
