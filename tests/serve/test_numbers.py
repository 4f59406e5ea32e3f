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
@example("1231298447856065903e-18")  # rounded wrongly without its remainder,
@example("6233935865967591031e3")  # without the low half of its product,
@example("14439765413668097e16")  # and as a float after two roundings
@example("0." + 26 * "0" + "12345678901234567")
@example("4.9e-324")
@example("-0")
@example("-0.0")
def test_every_number_is_the_nearest_double_as_python_reads_it(text):
    """CPython's `float` is correctly rounded."""
    value = 0.0 if text == "-0" else float(text)  # a whole number has one zero, to orjson too
    for name in ("float64", "float32"):
        try:
            (got,) = numbers_of(np.dtype(name), 1)([b"[%b]" % text.encode()])
        except Unread:
            assert not np.isfinite(value)
            continue
        with np.errstate(over="ignore"):
            want = np.array(value).astype(name)
        assert got.tobytes() == want.tobytes(), (text, got, want)


@pytest.mark.parametrize("bits", [24, 53])
def test_numbers_next_to_the_middle_of_two_doubles_or_floats(bits):
    """With nineteen digits at most, of which the last decides; an exact fraction says where the middle is."""
    rng, texts = random.Random(bits), []
    while len(texts) < 6000:
        q, m, e = rng.randint(-27, 27), rng.getrandbits(bits) | 1 << (bits - 1), rng.randint(-150, 100)
        middle = Fraction(2 * m + 1) * Fraction(2) ** e / Fraction(10) ** q
        if 1 < middle < 10**19 - 2:
            texts += [f"{int(middle) + d}e{q}" for d in (-1, 0, 1)]
    want, raw = np.array([float(text) for text in texts]), f"[{','.join(texts)}]".encode()
    np.testing.assert_array_equal(numbers_of(np.dtype("float64"), len(texts))([raw]), want)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(numbers_of(np.dtype("float32"), len(texts))([raw]), want.astype("float32"))


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


@given(st.lists(st.integers(0, 2**64 + 2) | st.integers(-(2**63) - 2, 2**65), min_size=1, max_size=9))
@example([10**19 - 1, 10**19, 2**64 - 1])
@example([2**64])
@example([10**20 - 1])
@example([-(2**63)])
@example([-(2**63) - 1])
def test_whole_numbers_keep_all_their_bits(values):
    for name in ("int64", "uint64"):
        kind = np.iinfo(name)
        try:
            got = numbers_of(np.dtype(name), len(values))([json.dumps(values).encode()]).tolist()
        except Unread:
            assert any(not kind.min <= x <= kind.max for x in values)
        else:
            assert got == values


def test_a_text_of_every_length_is_read_to_its_last_byte():
    """So that the last eight bytes lie across the end in every way; what lies behind it only a sanitizer sees."""
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
