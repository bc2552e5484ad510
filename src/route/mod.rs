//! The ways to a shard: from the other shards by the [`Mesh`], from threads that are none by a
//! bounded [`Inbox`]; and a [`Doorbell`] that wakes the shard when it is parked and costs nearly
//! nothing when it is not. Nothing here knows what it carries.

mod closing;
mod doorbell;
mod inbox;
mod mesh;
mod posted;
mod ring;
mod room;

pub use doorbell::Doorbell;
pub use inbox::{Inbox, Port, Refused, inbox};
pub use mesh::{Joining, Mesh, Published, Seat, seats};
pub use posted::Posted;
