"""Speech to text: prompts that are read and divided without leakage, what is lost, and a wave that becomes a text."""

import gzip
import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.catalog import nets
from airserve.learn.losses import connectionist
from airserve.learn.nets import Form
from airserve.learn.nets.quartznet import varied
from airserve.learn.tasks import TaskError, asterisk
from airserve.learn.training import train
from airserve.learn.transcribing import Transcriber
from airserve.learn.transcripts import error_rate
from airserve.model import Engine
from airserve.registry import Registry

TEXTS = ["Press one.", "A.M.", "ab", "ba", "cab", "abc", "bad", "dad", "cd", "dc", "Beep [a tone]", "Dial 28 now", "d"]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as the packages leave it, in which each character is a tone of 0.1 s."""
    folder = tmp_path / "asterisk"
    folder.mkdir()
    lines = ["; a comment", *(f"{k}: {text}" for k, text in enumerate(TEXTS)), "absent: nothing", ""]
    (folder / "core-sounds-en.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    for k, text in enumerate(TEXTS):
        tones_hz = [300 + 100 * asterisk.CHARACTERS.index(each) for each in asterisk.plain(text)]
        sound = [1_500 * np.cos(2 * np.pi * tone_hz * np.arange(-799, 1) / 8_000) for tone_hz in tones_hz]
        with wave.open(str(folder / f"{k}.wav"), "wb") as file:
            file.setparams((1, 2, 8_000, 0, "NONE", ""))
            file.writeframes(np.concatenate(sound).astype(np.int16).tobytes())
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path))
    monkeypatch.setattr(asterisk, "VALIDATION", 2)
    monkeypatch.setattr(asterisk, "TEST", 3)
    asterisk.load.cache_clear()
    yield folder
    asterisk.load.cache_clear()


@pytest.mark.usefixtures("prompts")
def test_prompts_whose_text_is_what_is_said_are_read() -> None:
    found = asterisk.read()
    assert [text for _, text in found] == ["press one", "a m", *TEXTS[2:10], "d"]
    assert [len(samples) for samples, _ in found] == [800 * len(text) for _, text in found]
    data = asterisk.load()
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [6, 2, 3]
    assert sorted(text for split in splits for text in asterisk.texts(split)) == sorted(text for _, text in found)
    for split in splits:
        for sound, text in zip(asterisk.waves(split), asterisk.texts(split), strict=True):
            assert len(sound) == 800 * len(text)


words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=30)
@given(st.lists(words, min_size=1, max_size=30))
def test_no_three_words_in_a_row_are_in_two_splits(texts: list[str]) -> None:
    parts = asterisk.divided(texts)
    assert sorted(row for part in parts for row in part) == list(range(len(texts)))

    def runs(rows: np.ndarray) -> set[tuple[str, ...]]:
        split = [texts[row].split() for row in rows]
        threes = {tuple(each[k : k + 3]) for each in split for k in range(len(each) - 2)}
        return threes | {("the whole", *each) for each in split}

    for part in range(3):
        for other in range(part):
            assert not runs(parts[part]) & runs(parts[other])


def test_the_nearest_sound_of_a_prompt_is_its_own(prompts: Path) -> None:
    data = asterisk.load()
    near = ((asterisk.sounds(data.test)[:, None] - asterisk.sounds(data.test)) ** 2).sum(axis=2).argmin(axis=1)
    assert near.tolist() == [0, 1, 2]
    assert asterisk.baseline(data).score > 0


@pytest.mark.parametrize("training", [False, True])
def test_what_is_lost_is_ctc_of_each_character(training: bool) -> None:
    """One row, so nothing is padded but its end, which must not count; in training it must be a number."""
    torch.manual_seed(0)
    net = nets["quartznet"].build(nets["quartznet"].Config(width=8, layers=1, bands=12), Form((4_000,), 5))
    net.train(training)
    sound = torch.randn(1, 3_000)
    labels = torch.tensor([[1, 4, 4, 2, 0, 0]])
    found = net.objective(torch.nn.functional.pad(sound, (0, 1_000)), labels)
    if training:
        assert torch.isfinite(found)
        return
    logits = net(sound)
    assert logits.shape == (1, (2 + (3_000 - 320) // 160) // 2, 5)  # a place of two frames
    wanted = connectionist(logits, labels, torch.tensor([logits.shape[1]]), torch.tensor([4]))
    assert found.item() == pytest.approx(wanted.item() / 4, rel=1e-5)


def test_a_voice_is_varied_within_its_limits() -> None:
    torch.manual_seed(0)
    seen = set()
    for _ in range(30):
        x, frames = varied(torch.ones(2, 100, 12), torch.tensor([100, 50]))
        assert 85 <= frames[0] <= 115
        assert abs(frames[0] - 2 * frames[1]) <= 1
        assert frames[0] <= x.shape[1] <= frames[0] + 1
        seen.add(int(frames[0]))
    assert len(seen) > 10


def test_logits_become_characters() -> None:
    """Symbol k is the k-th character; repeats are one unless a blank stands between, greedily and by a beam."""
    symbols = [3, 3, 0, 3, 1, 0, 4, 4]
    engine = SimpleNamespace(run=lambda inputs: [9 * np.eye(5, dtype=np.float32)[symbols][None]])
    transcriber = Transcriber(engine, " 'ab")  # type: ignore[arg-type]
    assert [transcriber.transcribe(np.zeros(9, np.int16), width) for width in (1, 4)] == ["aa b", "aa b"]


@pytest.mark.usefixtures("prompts")
def test_a_net_goes_all_the_way_from_sounds_to_a_graph_that_writes(tmp_path: Path) -> None:
    """Seven steps on tones; the score is that of the exported graph, which names its characters."""
    net = "quartznet,epochs=2,batch=4,width=8,layers=1,bands=12"
    model = train(net, "asterisk", registry=Registry(tmp_path / "home"), progress=False)
    (noted,) = onnx.load(model.path).metadata_props
    assert (noted.key, noted.value) == ("characters", asterisk.CHARACTERS)
    transcriber, data = Transcriber(Engine(model.path), noted.value), asterisk.load()
    found = [transcriber.transcribe(each) for each in asterisk.waves(data.test)]
    assert model.scores["character_error_rate"] == error_rate(found, asterisk.texts(data.test))
    assert set(model.scores) >= {"word_error_rate", "greedy_character_error_rate"}
    assert model.samples_path is None
    assert all(later["cpu_s"] >= earlier["cpu_s"] for earlier, later in pairwise(model.lineage["curve"]))


def test_absent_or_broken_prompts_are_one_sentence(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (prompts / "3.wav").write_bytes(b"no sound")
    with pytest.raises(TaskError, match=r"3\.wav cannot be read: .*install asterisk-core-sounds-en-wav again"):
        asterisk.read()
    for path in prompts.glob("*.wav"):
        path.unlink()
    with pytest.raises(TaskError, match="has no sounds: `apt-get install asterisk-core-sounds-en-wav`"):
        asterisk.read()
    (prompts / "core-sounds-en.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(TaskError, match="cannot be read"):
        asterisk.read()
    monkeypatch.setenv("AIRSERVE_DATA", str(prompts))
    monkeypatch.setattr(asterisk, "SAID", str(prompts / "none"))
    with pytest.raises(
        TaskError, match="apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-wav"
    ) as caught:
        asterisk.read()
    assert "\n" not in str(caught.value)
