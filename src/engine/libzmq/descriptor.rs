//! The descriptor of a libzmq socket, borrowed.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// The socket's `ZMQ_FD`, for as long as the socket lives.
pub(super) fn of(socket: &zmq::Socket) -> io::Result<BorrowedFd<'_>> {
    let raw = socket.as_raw_fd();
    if raw < 0 {
        return Err(io::Error::from_raw_os_error(raw));
    }
    // SAFETY: libzmq owns this descriptor and closes it with the socket, which the borrow outlives
    // not.
    Ok(unsafe { BorrowedFd::borrow_raw(raw) })
}
