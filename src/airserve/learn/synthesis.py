"""Synthetic speech: espeak-ng, through its library. A task that uses it says that its speech is synthetic."""

import ctypes
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from math import gcd
from pathlib import Path

import numpy as np

from airserve.learn.tasks import TaskError
from airserve.model import Array

LIBRARY = "libespeak-ng.so.1"
SYNCHRONOUS, UTF8, POSITION_IN_CHARACTERS = 2, 1, 1  # speak_lib.h
SPEED, PITCH = 1, 3  # parameters of speak_lib.h: words a minute, 0 to 100
Heard = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Saying:
    """A text, who says it, how fast and how high."""

    text: str
    accent: str  # a voice of espeak-ng, "en-us"
    variant: str  # a name of `variants`
    words_a_minute: int = 160
    pitch: int = 50  # 0 to 100


def speak(sayings: Sequence[Saying]) -> tuple[list[Array], int]:
    """Waves, int16, shape (samples,) each, and their sampling rate in Hz; the same for the same sayings.

    In a process of their own, for the library's voice depends on all that it said before. Raises `TaskError` when
    espeak-ng is absent.
    """
    synthesiser()
    asked = json.dumps([astuple(saying) for saying in sayings]).encode()
    code = "from airserve.learn import synthesis; synthesis.answer()"
    done = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True)
    if done.returncode:
        raise TaskError(f"espeak-ng failed: {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}.")
    with np.load(io.BytesIO(done.stdout)) as file:
        return np.split(file["waves"], file["ends"][:-1]), int(file["sampling_hz"])


def answer() -> None:
    """What the process of `speak` does: sayings from its input, waves to its output."""
    voice, file = synthesiser(), io.BytesIO()
    waves = [voice.say(Saying(*each)) for each in json.load(sys.stdin)]
    ends = np.cumsum([len(wave) for wave in waves])
    np.savez(file, waves=np.concatenate([np.zeros(0, np.int16), *waves]), ends=ends, sampling_hz=voice.sampling_hz)
    sys.stdout.buffer.write(file.getvalue())


class Synthesiser:
    """espeak-ng's library: one voice at a time says one text at a time; its state is that of the whole process."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise TaskError("synthetic speech comes from the package espeak-ng: `apt-get install espeak-ng`.") from None
        self.sampling_hz = int(self.library.espeak_Initialize(SYNCHRONOUS, 0, None, 0))
        if self.sampling_hz <= 0:
            raise TaskError("espeak-ng has no voices here: `apt-get install espeak-ng-data`.")
        self.heard: list[Array] = []
        self._keep = Heard(self._hear)  # the library keeps no reference of its own
        self.library.espeak_SetSynthCallback(self._keep)

    def _hear(self, wave: "ctypes._Pointer[ctypes.c_short]", samples: int, _event: int | None) -> int:
        if samples > 0:
            self.heard.append(np.ctypeslib.as_array(wave, (samples,)).copy())
        return 0

    def variants(self) -> list[str]:
        """Names of the voices that can speak in any accent."""
        folder = ctypes.c_char_p()
        self.library.espeak_Info.restype = ctypes.c_char_p
        self.library.espeak_Info(ctypes.byref(folder))
        return sorted(file.name for file in (Path((folder.value or b"").decode()) / "voices" / "!v").glob("*"))

    def say(self, saying: Saying) -> Array:
        """The wave, int16, shape (samples,), at `sampling_hz`. Raises `TaskError` for an accent that is none."""
        if self.library.espeak_SetVoiceByName(f"{saying.accent}+{saying.variant}".encode()):
            raise TaskError(f"espeak-ng has no voice {saying.accent}: `apt-get install espeak-ng-data`.")
        self.library.espeak_SetParameter(SPEED, saying.words_a_minute, 0)
        self.library.espeak_SetParameter(PITCH, saying.pitch, 0)
        self.heard.clear()
        said = saying.text.encode()
        self.library.espeak_Synth(said, len(said) + 1, 0, POSITION_IN_CHARACTERS, 0, UTF8, None, None)
        return np.concatenate([np.zeros(1, np.int16), *self.heard])


@cache
def synthesiser() -> Synthesiser:
    """The one of this process. Raises `TaskError` when espeak-ng is absent."""
    return Synthesiser()


def speakers(variants: Sequence[str]) -> list[list[str]]:
    """Variants that are one speaker, told apart by a number at the end; m1 to m8 and f1 to f5 are people of their own.

    >>> speakers(["Gene", "Gene2", "f1", "f2"])
    [['f1'], ['f2'], ['Gene', 'Gene2']]
    """
    found: dict[str, list[str]] = {}
    for variant in variants:
        stem = re.sub(r"\d+$", "", variant).lower()
        found.setdefault(stem if len(stem) > 1 else variant, []).append(variant)
    return [found[name] for name in sorted(found)]


def resample(wave: Array, from_hz: int, to_hz: int) -> Array:
    """The wave at another rate, float32: a polyphase filter that lets through what both rates hold."""
    from scipy.signal import resample_poly

    shared = gcd(from_hz, to_hz)
    up, down = to_hz // shared, from_hz // shared
    return np.asarray(resample_poly(wave.astype(np.float32), up, down, window=low_pass(max(up, down))), np.float32)


@cache
def low_pass(rate: int) -> Array:
    """The filter that resampling by this larger of its two factors needs, as scipy would make it anew each time."""
    from scipy.signal import firwin

    return np.asarray(firwin(20 * rate + 1, 1 / rate, window=("kaiser", 5.0)), np.float32)
