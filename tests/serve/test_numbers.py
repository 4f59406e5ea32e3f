"""Numbers of JSON read in C: each the nearest double, and nothing taken that is no JSON."""

import json
import random
from fractions import Fraction

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airserve.serve.gathering import Unread
from airserve.serve.protocols import _numbers
from airserve.serve.protocols._numbers import numbers_of

digits = st.text("0123456789", min_size=1, max_size=24)
whole = digits.map(lambda text: text.lstrip("0") or "0")
written = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(("", "-")),
    whole,
    digits.map(".{}".format) | st.just(""),
    st.builds("{}{}{}".format, st.sampled_from("eE"), st.sampled_from(("", "+", "-")), st.integers(0, 40))
    | st.just(""),
)


def test_it_was_compiled():
    assert _numbers.compiled is not None, "airserve was installed without a C compiler; pip install -e . again with one"


@settings(max_examples=2000, deadline=None)
@given(written | st.floats(allow_nan=False, allow_infinity=False).map(repr))
@example("9007199254740993")  # half-way between two doubles, and half-way between two floats
@example("16777217")
@example("1.00000005960464477539062500001")
@example("3.4028235677973366e38")
@example("1e23")
@example("0." + 26 * "0" + "12345678901234567")
@example("4.9e-324")
def test_every_number_is_the_nearest_double_as_python_reads_it(text):
    """CPython's `float` is correctly rounded."""
    value = float(text)
    for name in ("float64", "float32"):
        try:
            (got,) = numbers_of(np.dtype(name), 1)([b"[%b]" % text.encode()])
        except Unread:
            assert not np.isfinite(value)
            continue
        with np.errstate(over="ignore"):
            want = np.array(value).astype(name)
        assert got.tobytes() == want.tobytes(), (text, got, want)


def test_numbers_half_way_between_two_doubles():
    """Exact fractions are the oracle: the tie is given to the even one, a hair above it to the upper one."""
    rng, read = random.Random(1), numbers_of(np.dtype("float64"), 1)
    for _ in range(2000):
        m, e = rng.getrandbits(53) | 1 << 52, rng.randint(-50, 11)
        middle = Fraction(2 * m + 1) * Fraction(2) ** (e - 1)
        tens = 0
        while middle.denominator > 1:  # a decimal with all its digits, which are few enough for e >= -10
            middle, tens = 10 * middle, tens + 1
        low, high = m * 2.0**e, (m + 1) * 2.0**e
        for text, want in (
            (f"{middle.numerator}e-{tens}", high if m % 2 else low),
            (f"{middle.numerator}0000000001e-{tens + 10}", high),
        ):
            assert read([f"[{text}]".encode()])[0] == want


@pytest.mark.parametrize("name", ["float32", "int64", "uint64"])
@settings(max_examples=1000, deadline=None)
@given(text=st.text('0159.-+eE,[] \t\n\x00x"N', max_size=12) | st.text(max_size=6))
@example(text="[1.]")
@example(text="[.5]")
@example(text="[01]")
@example(text="[-01]")
@example(text="[1e]")
@example(text="[1e+]")
@example(text="[+1]")
@example(text="[1,]")
@example(text="[1 2]")
@example(text="[1]]")
@example(text="[1]\x00")
@example(text="[1\x00")
@example(text="[NaN]")
@example(text="[1e999]")
@example(text="[ 1 ,\n2\t]\r")
def test_what_is_no_list_of_numbers_is_not_read(name, text):
    """Whatever it takes, a JSON parser takes too, and sees the same."""
    raw = text.encode()
    for count in range(4):
        try:
            got = numbers_of(np.dtype(name), count)([raw])
        except Unread:
            got = None
        try:
            want = orjson.loads(raw)
        except orjson.JSONDecodeError:
            want = None
        plain = isinstance(want, list) and len(want) == count and all(type(x) in (int, float) for x in want)
        if got is not None:
            assert plain
            np.testing.assert_array_equal(got, np.array(want, name))
        elif plain and name == "float32":
            pytest.fail(f"{text!r} is left to the slower way")


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=9))
def test_whole_numbers_keep_all_their_bits(values):
    for name in ("int64", "uint64"):
        kind = np.iinfo(name)
        try:
            got = numbers_of(np.dtype(name), len(values))([json.dumps(values).encode()]).tolist()
        except Unread:  # beyond the type, or with twenty digits
            assert any(not kind.min <= x <= kind.max or abs(x) >= 10**19 for x in values)
        else:
            assert got == values


def test_a_request_in_many_pieces_of_memory_is_read_to_its_last_byte_and_no_further():
    """Every length of text, so that the last eight bytes lie across the end in every way."""
    for size in range(1, 40):
        text = b"[" + b"7" * min(size, 19) + b" " * max(0, size - 19) + b"]"
        assert numbers_of(np.dtype("float64"), 1)([text])[0] == float(b"7" * min(size, 19))


def test_what_is_asked_in_a_wrong_way_is_an_error():
    assert _numbers.compiled is not None
    for texts, into in (
        ([b"[1]"], np.empty(1, "int32")),
        (["[1]"], np.empty(1)),
        (7, np.empty(1)),
        ([b"[1]"], b"12345678"),
    ):
        with pytest.raises((TypeError, BufferError)):
            _numbers.compiled(texts, into)
    assert not _numbers.compiled([], np.empty(0))
