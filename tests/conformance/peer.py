#!/usr/bin/env python3
"""Holds a running `corelane serve` to the wire's description, from outside.

    python3 tests/conformance/peer.py tcp://127.0.0.1:7400 [SEED]

Prints `ok NAME` or `FAILED NAME: why` for each check, then a count; exits with 1 if one failed.
"""

import json
import sys
import time
import traceback
import uuid

from corelane_wire import (
    ACK, ANSWER_WITHIN_S, CANCEL, CONFIRM, DEADLINE_EXCEEDED, FLAG_LZ4, FLAG_RETRY, GOODBYE,
    HANDLER_FAILED, HANDLER_PANICKED, HELLO, JSON, MALFORMED, NACK, ONE_WAY, OVERLOADED, RAW,
    REQUEST, RESPONSE, TOO_LARGE, UNKNOWN_HANDLER, UNSUPPORTED, WELCOME, Peer, handler_key, pack,
)
from garbage import send_mutated, send_random

MESSAGE_BYTES_MAX = 1 << 20
SPAWNED_MAX = 10_000

# What each demonstration handler is sent, and what a request to it brings: exact bytes, a check of
# the payload, or the reason and text of a nack.
WHERE = ["shard", "cpu", "numa_node"]
HANDLERS = {
    "echo": (RAW, b"\x00any bytes\xff", b"\x00any bytes\xff"),
    "sum": (JSON, b'{"a":1,"b":2}', b'{"total":3}'),
    "count": (RAW, b"counted", None),
    "count.read": (JSON, b"{}", lambda payload: list(minimal(payload)) == ["count"]),
    "fail": (RAW, b"", (HANDLER_FAILED, b"asked to fail")),
    "panic": (RAW, b"", (HANDLER_PANICKED, None)),
    "spin": (JSON, b'{"us":200}', None),
    "sleep": (JSON, b'{"ms":2}', None),
    "where": (JSON, b"{}", lambda payload: list(minimal(payload)) == WHERE),
}

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def minimal(payload):
    """Parses JSON that must be written without spaces."""
    value = json.loads(payload)
    assert json.dumps(value, separators=(",", ":")).encode() == payload, f"not minimal: {payload}"
    return value


def same(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def is_nack(answer, *reasons):
    is_one = answer.kind == NACK and answer.reason in reasons
    assert is_one, f"no nack of reason {reasons}: {answer}"


def still_answers(peer):
    same(peer.ask("echo", b"still there?").payload, b"still there?")


@check
def hello_is_answered_by_welcome(peer, _):
    hello = {"instance": str(uuid.uuid4()), "versions": [2], "mood": {"unknown": ["member"]}}
    answer = peer.answer_to(peer.send(HELLO, payload=json.dumps(hello).encode()))
    same(answer.kind, WELCOME)
    welcome = json.loads(answer.payload)
    uuid.UUID(welcome["instance"])
    assert 2 in welcome["versions"] and {"raw", "json", "postcard"} <= set(welcome["codecs"])
    assert isinstance(welcome["features"], list) and isinstance(welcome["host"], str)
    assert welcome["shards"] >= 1 and welcome["endpoints"], welcome
    served = {handler["name"]: handler for handler in welcome["handlers"]}
    for name in HANDLERS:
        same(served[name]["key"], f"{handler_key(name):016x}")
        affinity = served[name]["affinity"]
        assert affinity in ("local", "key") or affinity.startswith("shard:"), affinity
    still_answers(peer)


@check
def a_hello_that_is_no_json_is_malformed(peer, _):
    is_nack(peer.answer_to(peer.send(HELLO, payload=b"{")), MALFORMED)
    still_answers(peer)


@check
def each_handler_answers_a_request(peer, _):
    for name, (codec, payload, expected) in HANDLERS.items():
        answer = peer.ask(name, payload, codec=codec)
        if isinstance(expected, tuple):
            is_nack(answer, expected[0])
            assert expected[1] in (None, answer.payload), f"{name}: {answer.payload}"
            continue
        same((name, answer.kind, answer.codec), (name, RESPONSE, codec))
        if callable(expected):
            assert expected(answer.payload), f"{name}: {answer.payload}"
        elif expected is not None:
            same((name, answer.payload), (name, expected))


@check
def each_handler_acknowledges_a_confirm(peer, _):
    for name, (codec, payload, expected) in HANDLERS.items():
        answer = peer.ask(name, payload, kind=CONFIRM, codec=codec)
        if isinstance(expected, tuple):
            is_nack(answer, expected[0])
        else:
            same((name, answer.kind), (name, ACK))


@check
def one_way_is_never_answered(peer, _):
    for name, (codec, payload, _) in HANDLERS.items():
        peer.send(ONE_WAY, name, payload, codec=codec)
    peer.send(ONE_WAY, "no such handler")
    peer.send(ONE_WAY, "sum", b"no json", codec=JSON)
    still_answers(peer)
    peer.stays_quiet()


@check
def count_counts_each_mode(peer, _):
    def read():
        return minimal(peer.ask("count.read", b"{}", codec=JSON).payload)["count"]

    before = read()
    for _ in range(100):
        peer.send(ONE_WAY, "count")
    peer.ask("count", kind=CONFIRM)
    peer.ask("count")
    same(read() - before, 102)


@check
def correlations_come_back_in_order(peer, _):
    correlations = [0, 2**64 - 1, 2**63, 1] + list(range(1000, 1200))
    for correlation in correlations:
        peer.send(REQUEST, "echo", str(correlation).encode(), correlation=correlation)
    for correlation in correlations:
        same(peer.answer_to(correlation).payload, str(correlation).encode())


@check
def sleep_sleeps_and_others_are_answered_meanwhile(peer, _):
    started = time.monotonic()
    sleeping = peer.send(REQUEST, "sleep", b'{"ms":150}', codec=JSON)
    still_answers(peer)
    same(peer.answer_to(sleeping).kind, RESPONSE)
    assert time.monotonic() - started >= 0.15


@check
def payloads_may_be_empty_and_large(peer, _):
    same(peer.ask("echo").payload, b"")
    largest = bytes(range(256)) * (MESSAGE_BYTES_MAX // 256)
    largest = largest[:-40]  # a message is header and payload
    assert peer.ask("echo", largest).payload == largest, "another payload came back"


@check
def longer_headers_and_unknown_flags_are_ignored(peer, _):
    for tail in (b"\x00", b"an extension of a later version" * 8):
        same(peer.ask("echo", b"x", tail=tail).payload, b"x")
    for flags in (FLAG_RETRY, 0xFC, 0x80 | FLAG_RETRY):
        same(peer.ask("echo", b"x", flags=flags, route_key=7).payload, b"x")


@check
def unknown_handlers_are_nacked_and_the_connection_stays(peer, _):
    for _ in range(5):
        is_nack(peer.ask("no such handler"), UNKNOWN_HANDLER)
        is_nack(peer.ask(0, kind=CONFIRM), UNKNOWN_HANDLER)
    still_answers(peer)


@check
def a_deadline_that_passes_in_the_queue_is_nacked(peer, _):
    # While the first spins, the second and the echo arrive: they are read together, and by the
    # time the second has spun, the echo is late.
    first = peer.send(REQUEST, "spin", b'{"us":100000}', codec=JSON)
    time.sleep(0.03)
    second = peer.send(REQUEST, "spin", b'{"us":100000}', codec=JSON)
    late = peer.send(REQUEST, "echo", b"late", deadline_us=1000)
    same([peer.answer_to(first).kind, peer.answer_to(second).kind], [RESPONSE, RESPONSE])
    is_nack(peer.answer_to(late), DEADLINE_EXCEEDED)


@check
def malformed_payloads_are_nacked(peer, _):
    for payload in (b"", b"{", b'{"a":1}', b'{"a":"x","b":2}', b"\xff\xfe", b"[" * 100_000):
        is_nack(peer.ask("sum", payload, codec=JSON), MALFORMED)
        is_nack(peer.ask("sum", payload, codec=JSON, kind=CONFIRM), MALFORMED)
    still_answers(peer)


@check
def malformed_headers_are_nacked_where_a_correlation_can_be_read(peer, _):
    good = pack(REQUEST, 77, "echo")
    for what, header in {
        "short": good[:24],
        "shortest with a correlation": good[:16],
        "kind 0": good[:3] + b"\x00" + good[4:],
        "kind 99": good[:3] + b"\x63" + good[4:],
    }.items():
        peer.send_frames([header, b"payload"])
        answer = peer.answer_to(77)
        assert (answer.kind, answer.reason) == (NACK, MALFORMED), f"{what}: {answer}"
        still_answers(peer)  # so that no three stand in a row
    for header in (b"", good[:7], b"XY" + good[2:]):
        peer.send_frames([header, b"payload"])
        still_answers(peer)


@check
def three_malformed_headers_in_a_row_harm_nobody_else(peer, endpoint):
    with Peer(endpoint) as other:
        for _ in range(4):
            other.send_frames([b"CL", b""])
        still_answers(peer)
    with Peer(endpoint) as fresh:
        still_answers(fresh)


@check
def what_this_server_cannot_is_unsupported(peer, _):
    is_nack(peer.ask("sum", b'{"a":1,"b":2}', codec=9), UNSUPPORTED)
    hello = json.dumps({"instance": str(uuid.uuid4())}).encode()
    if "lz4" not in json.loads(peer.answer_to(peer.send(HELLO, payload=hello)).payload)["features"]:
        is_nack(peer.ask("echo", b"\x10x", flags=FLAG_LZ4), UNSUPPORTED)
    # A version is part of the header's form and of what a peer can do: either reason says it.
    later = pack(REQUEST, 78, "echo")
    peer.send_frames([later[:2] + b"\x03" + later[3:], b""])
    is_nack(peer.answer_to(78), MALFORMED, UNSUPPORTED)
    still_answers(peer)


@check
def messages_over_the_limit_are_nacked(_, endpoint):
    with Peer(endpoint) as sender:
        is_nack(sender.ask("echo", bytes(2 * MESSAGE_BYTES_MAX)), TOO_LARGE)
    with Peer(endpoint) as fresh:
        still_answers(fresh)


@check
def cancel_goodbye_and_stray_answers_are_tolerated(_, endpoint):
    with Peer(endpoint) as peer:
        sleeping = peer.send(REQUEST, "sleep", b'{"ms":50}', codec=JSON)
        peer.send(CANCEL, correlation=sleeping)
        peer.send(CANCEL, correlation=4711)
        for stray in (ACK, RESPONSE, NACK, WELCOME):
            peer.send(stray, correlation=4712)
        late = peer.receive(0.2)  # cancelling is best effort
        assert late is None or late.correlation == sleeping, late
        peer.send(GOODBYE)
        still_answers(peer)
        peer.stays_quiet()


@check
def more_spawned_handlers_than_the_limit_are_overloaded(peer, endpoint):
    # One-way messages fill the slots without an answer each; all sleep until well after the last.
    with Peer(endpoint) as sleeper:
        for _ in range(SPAWNED_MAX):
            sleeper.send(ONE_WAY, "sleep", b'{"ms":3000}', codec=JSON)
        is_nack(sleeper.ask("sleep", b'{"ms":1}', codec=JSON), OVERLOADED)
        still_answers(sleeper)
    still_answers(peer)


@check
def random_messages_leave_the_others_alone(peer, endpoint):
    send_random(endpoint, seed=SEED, count=10_000, between=lambda: still_answers(peer))


@check
def mutated_messages_leave_the_others_alone(peer, endpoint):
    send_mutated(endpoint, seed=SEED, count=10_000, between=lambda: still_answers(peer))


@check
def the_slots_of_spawned_handlers_come_free_again(peer, _):
    ends_at = time.monotonic() + ANSWER_WITHIN_S
    while peer.ask("sleep", b'{"ms":1}', codec=JSON).kind != RESPONSE:
        assert time.monotonic() < ends_at, "still overloaded"
        time.sleep(0.05)


def main(endpoint):
    failed = 0
    with Peer(endpoint) as peer:
        still_answers(peer)  # without a server, say so at once
        for function in CHECKS:
            try:
                function(peer, endpoint)
                print(f"ok {function.__name__}", flush=True)
            except Exception as error:  # each check reports; none stops the others
                failed += 1
                where = traceback.extract_tb(error.__traceback__)[1].lineno
                why = f"{type(error).__name__}: {error}"[:400]  # a payload may be 1 MiB
                print(f"FAILED {function.__name__} (line {where}): {why}", flush=True)
                peer.__exit__()
                peer.__init__(endpoint)  # late answers go down with the old connection
    print(f"{len(CHECKS) - failed} ok, {failed} failed, seed {SEED}, {endpoint}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    SEED = int(sys.argv[2]) if len(sys.argv) == 3 else 20240817
    sys.exit(main(sys.argv[1]))
