//! How threads that are not a shard reach it: a bounded [`Inbox`], and a [`Doorbell`] that wakes
//! the shard when it is parked and costs nearly nothing when it is not. Nothing here knows what it
//! carries.

mod doorbell;
mod inbox;

pub use doorbell::Doorbell;
pub use inbox::{Inbox, Port, Refused, inbox};
