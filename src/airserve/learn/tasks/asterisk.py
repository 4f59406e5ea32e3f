"""Speech to text: what Asterisk says to its callers, real speech of one woman at 8 kHz, from Debian's packages.

Allison Smith says 500 prompts, from single letters and numbers to sentences. No prompt of the validation and the test
split has three words in a row, nor all its words, in common with one of another split. A Model hears one speaker in a
studio; of other people its error rate says nothing.
"""

import gzip
import re
import wave
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from airserve.learn.metrics import Metric
from airserve.learn.tasks import Baseline, Data, Split, TaskError, folders
from airserve.learn.transcribing import Transcriber
from airserve.learn.transcripts import error_rate
from airserve.model import Array, Engine
from airserve.registry import Registry

SAMPLING_HZ = 8_000
SOUNDS = "/usr/share/asterisk/sounds/en_US_f_Allison"
SAID = "/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
PACKAGES = "asterisk-core-sounds-en asterisk-core-sounds-en-wav"
CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"  # symbols 1 to 28; 0 is CTC's blank
LONGEST_S = 16  # a prompt
SAME = 3  # words in a row that only prompts of one split have in common
VALIDATION, TEST = 50, 100  # prompts
LARGEST = 20  # prompts that hang together and may yet be held out
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPOKEN = {**{str(k): word for k, word in enumerate(DIGITS)}, "*": "star", "#": "pound"}
NO_WORDS = re.compile(r"[\[\](){}<>]|\d\d|\d\.|\.\d")  # tones, notes to the reader, numbers that are said in some way
BEAM = 16


@cache
def load() -> Data:
    """Waves int16 (n, longest), 0 after their end, and characters int64 (n, longest), 0 after theirs.

    Raises `TaskError` when the files are absent.
    """
    prompts = read()
    waves = padded([each for each, _ in prompts], np.int16)
    labels = padded([[CHARACTERS.index(character) + 1 for character in text] for _, text in prompts], np.int64)
    parts = divided([text for _, text in prompts])
    train, validation, test = (Split(waves[rows], labels[rows]) for rows in parts)
    return Data(
        "asterisk",
        (),
        train,
        validation,
        test,
        answer="text",
        symbols=len(CHARACTERS) + 1,
        metric=Metric("character_error_rate", less_is_better=True),
        scale=(0.0, 2_000.0),
        metadata={"characters": CHARACTERS},
    )


def baseline(data: Data) -> Baseline:
    """The text of the prompt of the train split that sounds most like it."""
    known, asked = (sounds(split) for split in (data.train, data.test))
    near = ((asked[:, None] - known) ** 2).sum(axis=2).argmin(axis=1)
    found = texts(Split(data.train.inputs[near], data.train.labels[near]))
    return Baseline("text of the train prompt that sounds most like it", error_rate(found, texts(data.test)))


def assess(parts: Mapping[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    """Error rates of the exported graph on the test split: of characters and words, by a beam of 16 and greedily."""
    transcriber, wanted = Transcriber(parts[""], CHARACTERS), texts(data.test)
    scores = {}
    for name, width in (("", BEAM), ("greedy_", 1)):
        found = [transcriber.transcribe(each, width) for each in waves(data.test)]
        scores[f"{name}character_error_rate"] = error_rate(found, wanted)
        scores[f"{name}word_error_rate"] = error_rate(
            [each.split() for each in found], [each.split() for each in wanted]
        )
    return scores


def waves(split: Split) -> list[Array]:
    """Each wave without what pads it."""
    return [row[: np.flatnonzero(row)[-1] + 1] for row in split.inputs]


def texts(split: Split) -> list[str]:
    return ["".join(CHARACTERS[symbol - 1] for symbol in row if symbol) for row in split.labels]


def sounds(split: Split, frames: int = 16) -> Array:
    """Each prompt as log-mel spectra at so many even places of it, and its length, (n, numbers)."""
    from airserve.learn.spectra import log_mel

    found = []
    for each in waves(split):
        spectra = log_mel(each[None] / 2_000, SAMPLING_HZ, 20)[0]
        places = np.linspace(0, len(spectra) - 1, frames).round().astype(int)
        found.append(np.append(spectra[places].ravel(), np.sqrt(20 * frames) * np.log(len(spectra))))
    return np.stack(found)


def divided(texts: Sequence[str]) -> list[Array]:
    """Rows of the train, the validation and the test split; those that hang together stay so.

    >>> [part.tolist() for part in divided(["one", "press one to go", "one", "now press one to stay"])]
    [[], [1, 3, 0, 2], []]
    """
    groups = together(texts)
    held = [groups[k] for k in np.random.default_rng(0).permutation(len(groups)) if len(groups[k]) <= LARGEST]
    parts: list[list[int]] = [[], []]
    for part, wanted in zip(parts, (VALIDATION, TEST), strict=True):
        while len(part) < wanted and held:
            part += held.pop()
    train = sorted(set(range(len(texts))) - {row for part in parts for row in part})
    return [np.array(rows, np.int64) for rows in (train, *parts)]


def together(texts: Sequence[str]) -> list[list[int]]:
    """Rows whose texts are the same or have `SAME` words in a row in common, with one another or by way of others.

    >>> together(["one", "press one to go", "one", "now press one to stay"])
    [[0, 2], [1, 3]]
    """
    having = defaultdict(list)
    for row, text in enumerate(texts):
        words = text.split()
        for key in {text, *(" ".join(words[k : k + SAME]) for k in range(len(words) - SAME + 1))}:
            having[key].append(row)
    group = list(range(len(texts)))
    for rows in having.values():
        joined = {group[row] for row in rows}
        first = min(joined)
        group = [first if each in joined else each for each in group]
    return [[row for row, each in enumerate(group) if each == name] for name in sorted(set(group))]


def plain(said: str) -> str:
    """A transcript in the characters that are told apart.

    >>> plain("Press 4, or 6: you're #2"), plain("A.M.")
    ("press four or six you're pound two", 'a m')
    """
    spoken = "".join(f" {SPOKEN[each]} " if each in SPOKEN else each for each in said.lower())
    return " ".join(re.findall(r"[a-z']+", spoken))


def read() -> list[tuple[Array, str]]:
    """Waves and texts of all prompts of at most 16 s whose text is what is said. Raises `TaskError`."""
    own = next((path for path in folders("asterisk") if path.is_dir()), None)
    sounds, said = (own, own / "core-sounds-en.txt.gz") if own else (Path(SOUNDS), Path(SAID))
    try:
        with gzip.open(said, "rt", encoding="utf-8") as file:
            lines = [line.partition(":") for line in file if not line.startswith(";") and ":" in line]
    except FileNotFoundError:
        raise TaskError(f"the prompts of Asterisk come with packages of Debian: `apt-get install {PACKAGES}`; or put "
                        "their files in AIRSERVE_DATA/asterisk.") from None  # fmt: skip
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TaskError(f"{said} cannot be read: {str(error)[:80]}; install asterisk-core-sounds-en again.") from None
    prompts = []
    for name, _, text in lines:
        path = sounds / f"{name}.wav"
        if not NO_WORDS.search(text) and plain(text) and path.is_file():
            samples = wave_of(path)
            if len(samples) <= LONGEST_S * SAMPLING_HZ and samples.any():
                prompts.append((samples, plain(text)))
    if not prompts:
        raise TaskError(f"{sounds} has no sounds: `apt-get install asterisk-core-sounds-en-wav`.")
    return prompts


def wave_of(path: Path) -> Array:
    """The samples of a WAV file, int16. Raises `TaskError` for another rate or width."""
    try:
        with wave.open(str(path)) as file:
            if (file.getframerate(), file.getsampwidth(), file.getnchannels()) != (SAMPLING_HZ, 2, 1):
                raise TaskError(f"{path} is not of {SAMPLING_HZ} Hz, 16 bits and one channel.")
            return np.frombuffer(file.readframes(file.getnframes()), np.int16)
    except (wave.Error, EOFError) as error:
        raise TaskError(f"{path} cannot be read: {error}; install asterisk-core-sounds-en-wav again.") from None


def padded(rows: Sequence[Sequence[int] | Array], dtype: type) -> Array:
    """Rows of several lengths as one array, 0 after the end of each."""
    found: Array = np.zeros((len(rows), max(map(len, rows))), dtype)
    for row, each in zip(found, rows, strict=True):
        row[: len(each)] = each
    return found
