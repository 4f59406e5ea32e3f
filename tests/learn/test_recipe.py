"""Recipes: settings, their names, and the files that hold them."""

import subprocess
import sys
from pathlib import Path

import pytest

from airserve.errors import UserError
from airserve.learn.recipe import Options, choose, digest, read_net

RECIPE = "net: resnet8\ntask: digits\nseed: 3\nsettings: {width: 32, optimizer: sgd}\n"


def test_a_file_says_what_arguments_say(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    assert choose(str(file), None, None) == ("resnet8,width=32,optimizer=sgd", "digits", 3)
    assert choose(str(file), None, 0)[2] == 0  # a seed given wins
    file.write_text("net: mlp\ntask: digits")
    assert choose(str(file), None, None) == choose("mlp", "digits", None) == ("mlp", "digits", 0)


def test_a_recipes_name_is_what_it_was() -> None:
    """Models that were trained before options existed are still known. The hash stands as that version printed it."""
    name, config, options = read_net("resnet8,width=32")
    known = "92f9fef27508845d82f0fde71b06db88bb1f4e0811d6c24751f875fe732476ba"
    assert digest(name, config, options, "fashion-mnist", "abc", 0) == known
    assert digest(name, config, Options(clip=1.0), "fashion-mnist", "abc", 0) != known


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("net: [", "line 1: not YAML"),
        ("net: mlp\ntask: digits\nnet: mlp", "line 3: net stands twice; write it once"),
        ("- net", "must state `net` and `task`"),
        ("net: mlp", "must state `net` and `task`"),
        ("net: mlp\ntask: digits\nwidth: 3", "has an unknown key 'width'; a recipe has net, task, seed, settings"),
        ("net: mlp\ntask: digits\nseed: -1", "must be a whole number from 0 to 9223372036854775807, not -1"),
        (f"net: mlp\ntask: digits\nseed: {2**63}", "must be a whole number from 0 to 9223372036854775807, not 922337"),
        ("net: mlp\ntask: digits\nsettings: 3", "must be keys and values"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        choose(str(file), None, None)
    assert "\n" not in str(caught.value)


def test_what_is_left_out_or_too_much_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml cannot be read: No such file"):
        choose(str(tmp_path / "none.yaml"), None, None)
    with pytest.raises(UserError, match=r"give a task for mlp: .*digits"):
        choose("mlp", None, None)
    with pytest.raises(UserError, match="states its task; leave 'digits' out"):
        choose("r.yaml", "digits", None)
    with pytest.raises(UserError, match="optimizer=adagrad of mlp is none of adamw, adam"):
        read_net("mlp,optimizer=adagrad")
    for setting in ("transformer,dropout=1.5", "seq2seq,smoothing=1.01", "mlp,smoothing=2", "mlp,labels=2"):
        net, key, value = setting.replace("=", ",").split(",")
        with pytest.raises(UserError, match=rf"{key}={value} of {net} is no share; give one of at most 1"):
            read_net(setting)
    assert read_net("mlp,labels=1")[2].labels == 1
    assert read_net("mlp,balance=2,resample=2")[2].balance == 2  # rare classes may count more than common ones


@pytest.mark.parametrize(("net", "task", "near"), [("resnet88", "digits", "resnet8"), ("mlp", "digitss", "digits")])
def test_a_wrong_name_is_told_without_what_computes(net: str, task: str, near: str) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, onnxruntime=None)\n"
        "from airserve.errors import Unknown\nfrom airserve.learn.recipe import choose\n"
        f"try: choose({net!r}, {task!r}, None)\nexcept Unknown as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("no ")
    assert f"perhaps {near}" in said
