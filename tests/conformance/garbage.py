"""Multipart messages that no peer should send, from connections of their own.

A server may close or mute a connection after three malformed headers in a row, so a good request
follows each second message, and a new connection each hundredth: all of them reach the decoder.
The server may answer or not; what it does answer must be well-formed, which `Peer` checks.
"""

import random

from corelane_wire import (
    ACK, CANCEL, CONFIRM, GOODBYE, HELLO, JSON, NACK, ONE_WAY, REQUEST, RESPONSE, WELCOME, Peer,
    WireError, pack,
)

PER_CONNECTION = 100
FRAMES_MAX = 16
HELLO_JSON = b'{"instance":"550e8400-e29b-41d4-a716-446655440000","versions":[2]}'


def send_random(endpoint, seed, count, between):
    """Frames of random number, length and bytes; `between` runs after each connection."""
    rng = random.Random(f"random {seed}")

    def message():
        return [rng.randbytes(rng.choice((0, 1, 16, 39, 40, 41, rng.randrange(300))))
                for _ in range(rng.randint(1, FRAMES_MAX))]

    spread(endpoint, message, count, between)


def send_mutated(endpoint, seed, count, between):
    """Good messages with one to three faults each."""
    rng = random.Random(f"mutated {seed}")

    def message():
        frames = [bytearray(frame) for frame in rng.choice(SAMPLES)]
        for _ in range(rng.randint(1, 3)):
            rng.choice(FAULTS)(rng, frames)
        return [bytes(frame) for frame in frames] or [b""]

    spread(endpoint, message, count, between)


def spread(endpoint, message, count, between):
    """Raises if nearly no connection lives to its end: then this would test nothing."""
    connections = (count + PER_CONNECTION - 1) // PER_CONNECTION
    reached = 0
    for index in range(connections):
        with Peer(endpoint) as peer:
            for sent in range(min(PER_CONNECTION, count - index * PER_CONNECTION)):
                peer.send_frames(message())
                if sent % 2:
                    peer.send(REQUEST, "echo", correlation=2**40 + sent)
            last = peer.send(REQUEST, "echo", b"last", correlation=2**41)
            reached += peer.drain(last, within_s=0.5)
        between()
        if reached == 0 and index == 10:
            break
    if reached < connections // 2:
        raise WireError(f"only {reached} of {connections} connections were still answered")


def flip(rng, frames):
    if frames and (frame := rng.choice(frames)):
        frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)


def truncate(rng, frames):
    if frames and (frame := rng.choice(frames)):
        del frame[rng.randrange(len(frame)):]


def extend(rng, frames):
    if frames:
        rng.choice(frames).extend(rng.randbytes(rng.randrange(64)))


def extreme_field(rng, frames):
    if frames and len(frames[0]) >= 40:
        at, size = rng.choice(((2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (8, 8), (16, 8), (24, 8),
                               (32, 4), (36, 4)))
        frames[0][at:at + size] = rng.choice((b"\x00", b"\x01", b"\x7f", b"\xff")) * size


def drop_frame(rng, frames):
    if frames:
        frames.pop(rng.randrange(len(frames)))


def repeat_frame(rng, frames):
    if frames and len(frames) < FRAMES_MAX:
        frames.insert(rng.randrange(len(frames) + 1), bytearray(rng.choice(frames)))


def swap_frames(_, frames):
    frames.reverse()


FAULTS = (flip, flip, truncate, extend, extreme_field, drop_frame, repeat_frame, swap_frames)

# No `spin` and no `sleep`: a mutated digit would hold a shard for minutes, as it was asked to.
SAMPLES = [
    (pack(REQUEST, 1, "echo"), b"payload"),
    (pack(REQUEST, 2, "sum", codec=JSON), b'{"a":1,"b":2}'),
    (pack(REQUEST, 3, "where", codec=JSON), b"{}"),
    (pack(CONFIRM, 4, "count"), b""),
    (pack(ONE_WAY, 5, "count"), b"counted"),
    (pack(REQUEST, 6, "fail"), b""),
    (pack(HELLO, 7), HELLO_JSON),
    (pack(WELCOME, 8), HELLO_JSON),
    (pack(CANCEL, 1), b""),
    (pack(GOODBYE, 0), b""),
    (pack(ACK, 9), b""),
    (pack(RESPONSE, 10), b"stray"),
    (pack(NACK, 11), b"stray"),
]
