//! The native engine driven by hand: two of them, or one and a plain socket, in one thread and with
//! a clock of the test's own. What its peers do to it, and what it costs.

#[path = "native_engine/ages.rs"]
mod ages;
#[path = "native_engine/beats.rs"]
mod beats;
#[path = "native_engine/dialing.rs"]
mod dialing;
#[path = "native_engine/large.rs"]
mod large;
#[path = "native_engine/limits.rs"]
mod limits;
#[path = "native_engine/listening.rs"]
mod listening;
#[path = "native_engine/memory.rs"]
mod memory;
#[path = "native_engine/plain.rs"]
mod plain;
#[path = "native_engine/pressure.rs"]
mod pressure;
#[path = "native_engine/users.rs"]
mod users;
#[path = "native_engine/world.rs"]
mod world;
