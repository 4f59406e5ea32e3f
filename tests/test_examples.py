"""The examples of the network run as they stand, and print what their page says that they print."""

import re
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples/network"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
FIGURE = re.compile(r"\d+\.?\d*|\binf\b")


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_prints_what_the_page_says(name, capsys):
    """The same words; what overload gives moves most when the radio's tables get better."""
    (said,) = re.findall(rf"```text\n\$ python examples/network/{name}\.py\n(.*?)```", PAGE, re.DOTALL)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert FIGURE.sub("", printed).split() == FIGURE.sub("", said).split()
    pairs = zip(FIGURE.findall(printed), FIGURE.findall(said), strict=True)
    assert [float(a) for a, _ in pairs] == pytest.approx([float(b) for b in FIGURE.findall(said)], rel=0.5, abs=3)
