//! What both kinds of socket share.

use std::time::Duration;

use super::EngineOptions;
use crate::error::EngineError;

/// A socket with every option set that both kinds share.
///
/// Not libzmq's heartbeats: libzmq 4.3 aborts the process (`!_io_error`, its issue 4364) when
/// one is due on a connection that its peer has closed while its input was stopped, because its
/// queue was full. Any peer can bring that about, by sending faster than a busy shard reads. The
/// kernel's keepalive looks after tcp connections instead. It finds hosts that have gone, but not
/// processes that hang: calls to those end by their deadline.
///
/// The same assertion can be met by answering a peer's own heartbeat at that moment, which no
/// option turns off: a reason more for an engine of our own.
pub(super) fn new(
    context: &zmq::Context,
    kind: zmq::SocketType,
    options: &EngineOptions,
) -> Result<zmq::Socket, EngineError> {
    let socket = context.socket(kind).map_err(error)?;
    let interval_s = options.heartbeat_interval.as_secs().max(1);
    let probes = options
        .heartbeat_timeout
        .as_secs()
        .div_ceil(interval_s)
        .max(1);
    socket
        .set_sndhwm(options.hwm)
        .and_then(|()| socket.set_rcvhwm(options.hwm))
        .and_then(|()| socket.set_linger(millis(options.linger)))
        .and_then(|()| socket.set_maxmsgsize(frame_bytes_max(options)))
        .and_then(|()| socket.set_handshake_ivl(millis(options.handshake)))
        .and_then(|()| socket.set_tcp_keepalive(1))
        .and_then(|()| socket.set_tcp_keepalive_idle(clamp(interval_s)))
        .and_then(|()| socket.set_tcp_keepalive_intvl(clamp(interval_s)))
        .and_then(|()| socket.set_tcp_keepalive_cnt(clamp(probes)))
        .and_then(|()| socket.set_reconnect_ivl(millis(options.reconnect_min)))
        .and_then(|()| socket.set_reconnect_ivl_max(millis(options.reconnect_max)))
        .and_then(|()| socket.set_ipv6(true))
        .map_err(error)?;
    Ok(socket)
}

pub(super) fn error(error: zmq::Error) -> EngineError {
    EngineError::Socket(error.to_string())
}

/// libzmq ends the connection of whoever sends a larger frame. One that is only somewhat too large
/// is let through, to be nacked as `TooLarge`.
fn frame_bytes_max(options: &EngineOptions) -> i64 {
    const TOLERANCE: i64 = 4;
    TOLERANCE.saturating_mul(options.message_bytes_max.try_into().unwrap_or(i64::MAX))
}

fn millis(duration: Duration) -> i32 {
    duration.as_millis().try_into().unwrap_or(i32::MAX)
}

/// The kernel takes no more than this for a count or a time of keepalive.
fn clamp(value: u64) -> i32 {
    value.min(127) as i32
}
