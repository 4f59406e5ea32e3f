"""What is read quickly from the command line is what the full reading makes of it."""

import subprocess
import sys
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.cli import services  # noqa: F401 (adds its commands)
from airserve.cli.app import app
from airserve.cli.serving import OPTIONS, RANGES, plain
from airserve.serve import starting
from airserve.serve.configuration import Configuration

TEXT = ["", "a", "keys.json", "127.0.0.1", "0.0.0.0", "x=y"]
NUMBER = [
    "-2",
    "-1",
    "0",
    "0.0005",
    "0.001",
    "1",
    "2.5",
    "8",
    "65535",
    "65536",
    "99999",
    "+1",
    "1e2",
    "1_0",
    "x",
    "",
    "٣",
]


def fully(words):
    """The configuration by the full reading; None where it complains."""
    made = []
    kept, starting.become = starting.become, made.append
    try:
        app(["serve", *words], standalone_mode=False)
    except Exception:
        return None
    finally:
        starting.become = kept
    return made[0] if made else None


def test_every_option_is_read_quickly_and_has_its_range():
    numbers = {field.name for field in fields(Configuration) if type(field.default) in (int, float)}
    assert set(RANGES) == numbers
    assert {name for name, _ in OPTIONS.values()} == {f.name for f in fields(Configuration)} - {"sources", "name"}


@pytest.mark.parametrize("option", list(OPTIONS))
def test_each_value_is_what_the_full_reading_makes_of_it_or_left_to_that(option):
    _, kind = OPTIONS[option]
    for value in [None] if kind is bool else TEXT if kind is str else NUMBER:
        words = ["m.onnx", option] if value is None else ["m.onnx", option, value]
        quick, full = plain(words), fully(words)
        if quick is not None:
            assert quick == full, words
        elif value and value.isascii() and value.isdecimal():
            assert full is None, words  # what is plain and right is not left to the slower way


words = st.sampled_from([
    "m.onnx", "gpt", "a.keras", "folder", "-h", "--help", "--", "-", "--port", "--port=0", "--workers", "2", "--prot",
    "--access-log", "--access-log=1", "--keys=k", "--keys", "", "--name", "--sources", "--grpc-port", "-1", "--no-otel",
])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(words, max_size=6))
def test_any_words_are_read_as_the_full_reading_does_or_not_at_all(given):
    if (quick := plain(given)) is not None:
        assert quick == fully(given)


def test_serving_loads_no_other_command():
    code = (
        "import sys; sys.argv = ['airserve', 'serve', 'm.onnx']\n"
        "from airserve.serve import supervising\n"
        "def stop(configuration): print(sorted({name.split('.')[0] for name in sys.modules})); return 0\n"
        "supervising.supervise = stop\n"
        "from airserve.cli.__main__ import main\n"
        "main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"typer", "rich", "pydantic", "yaml", "email"} & set(eval(run.stdout))
