//! The header frame of an active message, as any peer may send it.
//!
//! Decoding never panics; what it accepts, `encode` writes back byte for byte; what it refuses
//! carries a correlation only if the frame holds one.

#![no_main]

use corelane::wire::{HEADER_BYTES, Header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    match Header::decode(frame) {
        Ok(header) => {
            assert_eq!(header.encode(), frame[..HEADER_BYTES], "{header:?}");
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
        Err(error) => {
            let readable = frame
                .get(8..16)
                .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
            assert!(
                error.correlation.is_none() || error.correlation == readable,
                "{error:?}"
            );
        }
    }
});
