//! The stream behind a handshake: messages, commands, and anything else.
//!
//! It is split into the same units however it is cut and whether payloads are waited for or
//! skipped, and no more is asked for than the limits allow. The first byte says how it is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)] // each target takes what it needs
#[path = "../../tests/zmtp_seeded/checks.rs"]
mod checks;

fuzz_target!(|input: &[u8]| {
    let Some((&first, stream)) = input.split_first() else {
        return;
    };
    checks::check_frames(stream, u64::from(first));
});
