#!/usr/bin/env python3
"""A corelane peer in Python, from the wire alone: a DEALER and forty bytes of header.

    corelane serve --listen tcp://127.0.0.1:7400
    pip install pyzmq
    python3 examples/python_client.py tcp://127.0.0.1:7400

Prints what it sends and gets; exits with 1 if an answer is not the expected one.
"""

import json
import struct
import sys
import uuid

import zmq

HEADER = struct.Struct("<2sBBBBHQQQII")
ONE_WAY, CONFIRM, REQUEST, ACK, RESPONSE, NACK, HELLO, WELCOME = range(1, 9)
RAW, JSON = 0, 1
WITHIN_US = 1_000_000


def key(name):
    """A handler's name on the wire: FNV-1a 64."""
    digest = 0xCBF29CE484222325
    for byte in name.encode():
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return digest


def send(socket, kind, correlation, handler="", payload=b"", codec=RAW):
    deadline_us = WITHIN_US if kind in (CONFIRM, REQUEST) else 0
    handler_key = key(handler) if handler else 0
    header = HEADER.pack(
        b"CL", 2, kind, codec, 0, 0, correlation, handler_key, 0, deadline_us, 0
    )
    socket.send_multipart([header, payload])


def receive(socket):
    """The next answer: its kind, reason, correlation and payload."""
    if not socket.poll(2 * WITHIN_US // 1000):
        sys.exit("no answer: is `corelane serve` running at this endpoint?")
    header, payload = socket.recv_multipart()
    _, _, kind, _, _, reason, correlation, *_ = HEADER.unpack_from(header)
    return kind, reason, correlation, payload


def expect(what, answer, expected):
    print(f"{what}: {answer}")
    if answer != expected:
        sys.exit(f"expected {expected}")


def main(endpoint):
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)

    hello = {"instance": str(uuid.uuid4()), "versions": [2], "codecs": ["raw", "json"]}
    send(socket, HELLO, 1, payload=json.dumps(hello).encode())
    kind, _, correlation, payload = receive(socket)
    welcome = json.loads(payload)
    names = [handler["name"] for handler in welcome["handlers"]]
    print(f"welcome from {welcome['instance']}, which serves {', '.join(names)}")
    expect("hello", (kind, correlation), (WELCOME, 1))

    send(socket, ONE_WAY, 2, "count", b"nobody answers this")
    send(socket, CONFIRM, 3, "count", b"handled, and no more is said")
    expect("confirm", receive(socket), (ACK, 0, 3, b""))

    send(socket, REQUEST, 4, "sum", b'{"a":1,"b":2}', JSON)
    expect("request", receive(socket), (RESPONSE, 0, 4, b'{"total":3}'))

    send(socket, REQUEST, 5, "nobody home")
    kind, reason, correlation, text = receive(socket)
    expect(f"nack, {text.decode()!r}", (kind, reason, correlation), (NACK, 1, 5))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
