//! The beginning of a connection, as any peer or stranger may send it: 64 bytes of greeting, and
//! what follows.
//!
//! It is refused at the same byte however it is cut, and nothing is sent before it is accepted. The
//! first byte says which end we are and how the rest is cut.

#![no_main]

use corelane::wire::zmtp::Role;
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)] // each target takes what it needs
#[path = "../../tests/zmtp_seeded/checks.rs"]
mod checks;

fuzz_target!(|input: &[u8]| {
    let Some((&first, stream)) = input.split_first() else {
        return;
    };
    let role = match first & 1 {
        0 => Role::Listener,
        _ => Role::Dialer,
    };
    checks::check_handshake(role, stream, u64::from(first >> 1));
});
