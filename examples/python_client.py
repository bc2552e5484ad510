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


def shard_of_key(route_key, shards):
    """The shard that owns a route key: mixed as splitmix64 ends, and taken as a part of 2^64."""
    mixed = (route_key ^ route_key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return (mixed ^ mixed >> 31) * shards >> 64


def endpoint_of(shard, welcome, dialed):
    """Where a shard listens, by the transport and the host that were dialed."""
    endpoints, shards = welcome["endpoints"], welcome["shards"]
    per_shard = len(endpoints) // shards
    scheme = dialed.partition("://")[0]
    listed = endpoints[shard * per_shard :][:per_shard]
    own = next(endpoint for endpoint in listed if endpoint.startswith(scheme))
    if scheme != "tcp":
        return own
    return f"{dialed.rpartition(':')[0]}:{own.rpartition(':')[2]}"


def connect(endpoint):
    import zmq  # only here: the functions above need nothing

    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    return socket


def send(socket, kind, correlation, handler="", payload=b"", codec=RAW, route_key=0):
    deadline_us = WITHIN_US if kind in (CONFIRM, REQUEST) else 0
    handler_key = key(handler) if handler else 0
    header = HEADER.pack(
        b"CL", 2, kind, codec, 0, 0, correlation, handler_key, route_key, deadline_us, 0
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


def call_by_key(welcome, dialed):
    """Sends messages straight to the shards that own their keys. Any other would route them."""
    for route_key in range(1, 2 * welcome["shards"] + 1):
        shard = shard_of_key(route_key, welcome["shards"])
        socket = connect(endpoint_of(shard, welcome, dialed))
        send(socket, REQUEST, route_key, "where.key", route_key=route_key)
        kind, _, correlation, payload = receive(socket)
        answer = (kind, correlation, json.loads(payload)["shard"])
        expect(f"by key {route_key}", answer, (RESPONSE, route_key, shard))


def main(endpoint):
    socket = connect(endpoint)

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

    if welcome["shards"] > 1 and welcome["route_map"] == "splitmix64":
        call_by_key(welcome, endpoint)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
