import json
import math
import socket
import struct
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.sandbox.compare import matches
from guerdon.sandbox.inside import wire

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
keys = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
values = st.recursive(
    scalars | st.sets(keys, max_size=4) | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3)),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


def over(value):
    """The value as it arrives on the other side."""
    return json.loads(json.dumps(wire.encode(value)))


@given(values)
def test_plain_data_arrives_as_it_was(value):
    arrived = wire.decode(over(value))
    assert arrived == value
    assert type(arrived) is type(value)


@given(values, values)
def test_a_value_matches_itself_and_nothing_unequal(value, other):
    assert matches(value, over(value))
    if frozen(value) != frozen(other):
        assert not matches(value, over(other))


def frozen(value):
    """The value with the difference of list and tuple taken out; sets and frozensets are equal as they are."""
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        ([1, 2], (1, 2), True),
        ((1, [2]), [1, (2,)], True),
        ({1, 2}, frozenset({2, 1}), True),
        ([1, 2], [2, 1], False),
        ([1, 2], [1, 2, 3], False),
        ([1, 2], {1, 2}, False),
        (1, 1.0, True),
        (1, True, False),
        (True, 1, False),
        (0, None, False),
        (0, "", False),
        ("1", 1, False),
        ("a", "A", False),
        (b"a", "a", False),
        ({1: 2}, {1: 2.0}, True),
        ({1: 2}, {True: 2}, False),
        ({1: 2}, {1: 3}, False),
        ({1: 2}, {}, False),
        ({}, [], False),
        (math.nan, math.nan, False),
        (math.inf, math.inf, True),
        (10**400, 10**400, True),
        (10**400, 10**400 + 1, False),
        (0.1 + 0.2, 0.3, False),
        (1 + 2j, 1 + 2j, True),
        (range(3), range(3), True),
        (range(3), [0, 1, 2], False),
    ],
)
def test_what_counts_as_the_same(expected, given, same):
    assert matches(expected, over(given)) is same


def test_tolerances_are_for_floats():
    assert matches([0.3], over([0.1 + 0.2]), rel_tol=1e-9)
    assert matches(1.0, over(1.05), abs_tol=0.1)
    assert matches(1, over(1.05), abs_tol=0.1)
    assert not matches(100, over(101), rel_tol=0.1)
    assert not matches(1.5, over(10**400), rel_tol=0.1)


@pytest.mark.parametrize(
    "message",
    [
        {"dict": [[1, 2], [1, 2]]},
        {"dict": [[1, 2], [1.0, 2]]},
        {"dict": [[1]]},
        {"dict": [1]},
        {"dict": 7},
        {"dict": [[[1], 2]]},
        {"dict": [[{"dict": []}, 2]]},
        {"dict": [[{"handle": 1}, 2]]},
        {"dict": [[1, 2]], "list": []},
        {"handle": 0},
        {},
        [],
        None,
    ],
)
def test_messages_that_are_not_the_dict_do_not_match(message):
    assert not matches({1: 2}, message)
    assert not matches({1: 2, 3: 4}, message)


def test_an_expected_value_that_is_not_plain_is_refused():
    with pytest.raises(TypeError, match="holds object, want plain data"):
        matches([object()], [1])


def test_keys_that_collide_cost_no_time():
    message = {"dict": [[{"int": hex(i * (2**61 - 1))}, 0] for i in range(30_000)]}
    began = time.process_time()
    assert not matches(dict.fromkeys(range(30_000), 0), message)
    members = [key for key, _ in message["dict"]]
    assert not matches({frozenset({1}): 0}, {"dict": [[{"frozenset": members}, 0]]})
    assert time.process_time() - began < 1.0


class Sly(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Sly(3), 3),
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, {1: [2]}), {1: [2]}),
        (OrderedDict([(1, 2)]), {1: 2}),
        (np.int64(3), 3),
        (np.array([[1.5, 2.0]]), [[1.5, 2.0]]),
        ([np.bool_(True)], [True]),
    ],
)
def test_subclasses_and_arrays_become_what_they_extend(value, plain):
    arrived = wire.decode(over(value))
    assert arrived == plain
    assert type(arrived) is type(plain)


def test_what_is_not_plain_is_refused_or_kept():
    with pytest.raises(wire.WireError, match="function is not plain data"):
        wire.encode([over])
    assert wire.encode([over], lambda value: 7) == [{"handle": 7}]
    assert wire.decode([{"handle": 7}], lambda number: number + 1) == [8]
    with pytest.raises(wire.WireError, match="'handle' is not a kind"):
        wire.decode({"handle": 7})


def test_nesting_ends():
    deep = []
    for _ in range(wire.DEPTH + 2):
        deep = [deep]
    with pytest.raises(wire.WireError, match="nested more than 64 deep"):
        wire.encode(deep)
    with pytest.raises(wire.WireError, match="nested more than 64 deep"):
        wire.decode(deep)
    wire.check_depth(deep)
    with pytest.raises(wire.WireError, match="nested more than 5 deep"):
        wire.check_depth({"a": deep}, 5)


@pytest.mark.parametrize(
    "message",
    [
        {"int": "zz"},
        {"int": 3},
        {"bytes": "0"},
        {"set": [[1]]},
        {"dict": [[1]]},
        {"range": [1, 2, 0]},
        {"class": "os"},
        {},
        {"a": 1, "b": 2},
    ],
)
def test_malformed_messages_are_refused(message):
    with pytest.raises(wire.WireError):
        wire.decode(message)


def test_frames_are_whole_small_and_in_time():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(theirs, {"x": [1, "é"]})
        assert wire.receive(ours) == {"x": [1, "é"]}
        theirs.sendall(struct.pack("!I", 1000))
        with pytest.raises(wire.WireError, match="a message of 1000 bytes, want at most 999"):
            wire.receive(ours, 999)
        theirs.sendall(struct.pack("!I", 4) + b"nope")
        with pytest.raises(wire.WireError, match="not JSON"):
            wire.receive(ours)
        theirs.sendall(b"\0\0")
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            wire.receive(ours, deadline=began + 0.05)
        theirs.close()
        with pytest.raises(EOFError):
            wire.receive(ours)
