//! The payload of `hello` and `welcome`: JSON of any shape, depth and encoding.
//!
//! Decoding never panics and never overflows the stack; what it accepts survives a round trip.

#![no_main]

use corelane::wire::Hello;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let mut scratch = payload.to_vec(); // parsed in place
    let Ok(hello) = Hello::decode(&mut scratch) else {
        return;
    };
    assert_eq!(Hello::decode(&mut hello.encode()), Ok(hello));
});
