"""The active message, version 2, and a peer that speaks it: what the checks of peer.py stand on.

Written from the wire's description alone, so that it shares no mistake with the Rust code.
"""

import itertools
import struct
import time
from collections import namedtuple

import zmq

HEADER = struct.Struct("<2sBBBBHQQQII")
MAGIC = b"CL"
VERSION = 2

(ONE_WAY, CONFIRM, REQUEST, ACK, RESPONSE, NACK, HELLO, WELCOME, GOODBYE, CANCEL) = range(1, 11)
RAW, JSON, POSTCARD = range(3)
FLAG_LZ4, FLAG_RETRY = 1, 2

UNKNOWN_HANDLER = 1
HANDLER_FAILED = 2
HANDLER_PANICKED = 3
DEADLINE_EXCEEDED = 4
OVERLOADED = 5
MALFORMED = 7
TOO_LARGE = 8
UNSUPPORTED = 10

ANSWER_WITHIN_S = 5.0

Answer = namedtuple("Answer", "kind codec reason correlation handler payload")


class WireError(Exception):
    """What came back is not what the wire allows, or nothing came back."""


def handler_key(name):
    """FNV-1a 64 of the name's UTF-8 bytes."""
    digest = 0xCBF29CE484222325
    for byte in name.encode():
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return digest


def pack(kind, correlation, handler=0, codec=RAW, flags=0, route_key=0, deadline_us=None):
    """A header; a handler by name or key; a deadline of five seconds where one is required."""
    key = handler_key(handler) if isinstance(handler, str) else handler
    if deadline_us is None:
        deadline_us = 5_000_000 if kind in (CONFIRM, REQUEST) else 0
    return HEADER.pack(
        MAGIC, VERSION, kind, codec, flags, 0, correlation, key, route_key, deadline_us, 0
    )


def unpack(frames):
    """Takes an answer apart and holds it to what each answer must be."""
    if len(frames) != 2 or len(frames[0]) < HEADER.size:
        raise WireError(f"an answer of frames {[len(frame) for frame in frames]}")
    magic, version, kind, codec, _, reason, correlation, handler, *_ = HEADER.unpack_from(frames[0])
    answer = Answer(kind, codec, reason, correlation, handler, frames[1])
    if (magic, version) != (MAGIC, VERSION):
        raise WireError(f"magic {magic}, version {version}")
    if kind not in (ACK, RESPONSE, NACK, WELCOME, GOODBYE):
        raise WireError(f"a server sends no kind {kind}")
    if (reason != 0) != (kind == NACK):
        raise WireError(f"reason {reason} in kind {kind}")
    if handler != 0:
        raise WireError(f"handler key {handler:016x} in an answer")
    if kind == ACK and frames[1]:
        raise WireError(f"an ack with a payload: {frames[1]!r}")
    if kind == NACK:
        frames[1].decode()  # text for people; raises if it is not UTF-8
    return answer


class Peer:
    """One connection of its own."""

    def __init__(self, endpoint):
        self.correlations = itertools.count(1)
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(endpoint)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, kind, handler=0, payload=b"", correlation=None, tail=b"", **fields):
        """Sends a message; returns its correlation. `tail` follows the header in its frame."""
        if correlation is None:
            correlation = next(self.correlations)
        self.send_frames([pack(kind, correlation, handler, **fields) + tail, payload])
        return correlation

    def send_frames(self, frames):
        self.socket.send_multipart(frames)

    def receive(self, within_s=ANSWER_WITHIN_S):
        """The next answer, or `None`."""
        if not self.socket.poll(within_s * 1000):
            return None
        return unpack(self.socket.recv_multipart())

    def answer_to(self, correlation, within_s=ANSWER_WITHIN_S):
        """The next answer, which must be the one to `correlation`."""
        answer = self.receive(within_s)
        if answer is None:
            raise WireError(f"no answer within {within_s} s")
        if answer.correlation != correlation:
            raise WireError(f"an answer to {correlation} was due, not {answer}")
        return answer

    def ask(self, handler, payload=b"", kind=REQUEST, **fields):
        return self.answer_to(self.send(kind, handler, payload, **fields))

    def stays_quiet(self, for_s=0.2):
        """Raises if anything arrives."""
        answer = self.receive(for_s)
        if answer is not None:
            raise WireError(f"nothing was due, not {answer}")

    def drain(self, until, within_s=ANSWER_WITHIN_S):
        """Reads answers up to the one to `until`; returns whether it came."""
        ends_at = time.monotonic() + within_s
        while (left_s := ends_at - time.monotonic()) > 0:
            answer = self.receive(left_s)
            if answer is not None and answer.correlation == until:
                return True
        return False
