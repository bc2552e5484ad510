//! What a peer sends behind a good greeting: READY, ERROR, or anything else.
//!
//! It is read alike however it is cut, and no more of it is held than a READY may have. The first
//! byte says which end we are and how the rest is cut.

#![no_main]

use corelane::wire::zmtp::{Handshake, Role};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)] // each target takes what it needs
#[path = "../../tests/zmtp_seeded/checks.rs"]
mod checks;

fuzz_target!(|input: &[u8]| {
    let Some((&first, after_greeting)) = input.split_first() else {
        return;
    };
    let role = match first & 1 {
        0 => Role::Listener,
        _ => Role::Dialer,
    };
    let mut stream = Vec::new();
    Handshake::new(role, checks::METADATA_BYTES_MAX).open(&mut stream);
    stream.extend_from_slice(after_greeting);
    checks::check_handshake(role, &stream, u64::from(first >> 1));
});
