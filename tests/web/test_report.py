"""The page: asks for nothing, runs only what its policy pins, escapes what it is given, reads without JavaScript."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airserve.errors import UserError
from airserve.web import bundle
from airserve.web.report import render, save
from airserve.web.sections import at_quantile
from airserve.web.view import view
from airserve.web.words import SEEDS, ms, signed

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser without JavaScript sees: tags, attributes, text; scripts and styles apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self._within = ""
        self._given: dict[str, str | None] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._within, self._given = tag, dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts.append((self._given, data))
        elif self._within == "style":
            self.styles.append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def data(self) -> Any:
        return json.loads(next(text for given, text in self.scripts if given.get("id") == "data"))


def test_the_verdict_and_all_numbers_stand_in_the_html(report: dict[str, Any]) -> None:
    text = Page(render(report)).text
    assert "Both promises are kept." in text
    for service in report["services"] + report["runs"][0]["services"]:
        for key in ("predicted_ms", "measured_ms", "measured_p50_ms"):
            assert f"{service[key]:.1f}" in text
        for key in ("predicted_interval_ms", "measured_interval_ms"):
            assert f"{service[key][0]:.1f} to {service[key][1]:.1f}" in text
        for span in service["waterfall"]:
            assert f"{span['slow_ms']:.1f}" in text
        assert service["why"] in text
        assert f"{service['max_devices']}; the limit there: {service['binds']}" in text
        assert all(one["why"] in text for one in service["runners_up"])
    for line in report["emulation"]:
        assert line in text
    assert report["shared"] in text
    assert SEEDS in text
    assert "44.0 %" in text  # what slice video used
    assert "0.994" in text  # a score


def test_each_verdict_has_icon_and_word(verdicts: dict[str, Any]) -> None:
    html = render(verdicts)
    assert "inspect: promise not kept." in html
    for state, words in {
        "broken": "✗ not kept",
        "close": "≈ too close to call",
        "kept": "✓ kept",
        "few": "… too few requests",
    }.items():
        assert f'<span class="pill" data-state="{state}">{words}</span>' in html
    assert "queue · mast takes 14.0 ms more than predicted" in html


def test_an_invalid_run_says_so_first_and_why(report: dict[str, Any]) -> None:
    html = render(report | {"valid": False, "invalid_why": "slots were 9 ms late"})
    assert "✗ This run does not count: slots were 9 ms late." in Page(html).text
    assert 'class="verdict" data-state="invalid"' in html


def test_a_plan_is_a_report_without_measurement(report: dict[str, Any]) -> None:
    gone = ("measured_ms", "measured_interval_ms", "measured_p50_ms", "sent", "answered", "failed", "verdict")
    empty = ("over_time", "cdf", "worst", "score", "capacity")
    for service in report["services"]:
        service |= dict.fromkeys(gone + empty)
        for span in service["waterfall"]:
            span |= {"median_ms": None, "slow_ms": None, "predicted_median_ms": 1.5}
    text = Page(render(report | {"slices": None, "runs": None, "plan": {"limits": ["inspect: free the mast."]}})).text
    assert "Nothing is measured yet; the plan is predicted to keep 2 of 2 promises." in text
    assert "inspect: free the mast." in text
    assert "Where the milliseconds go, ms, predicted" in text


@pytest.mark.parametrize(
    "given", [{}, {"services": [{}]}, {"services": [{"name": "a", "promise_ms": None}], "slices": [{}]}]
)
def test_missing_and_unknown_keys_do_no_harm(given: dict[str, Any]) -> None:
    page = Page(render({"unknown": {"deep": 1}, **given}))
    assert "unknown" not in page.data


def test_an_infinite_percentile_is_shown_as_one(report: dict[str, Any]) -> None:
    report["services"][0] |= {
        "measured_ms": float("inf"), "measured_interval_ms": [40.0, None], "failed": 120, "verdict": "not kept",
    }  # fmt: skip
    page = Page(render(report))
    assert "inspect: p99 ∞ of 50 ms promised; 120 of 3 000 requests were not answered" in page.text
    assert "40.0 to ∞" in page.text
    assert page.data["services"][0]["measured_ms"] is None


def test_no_reference_leaves_the_page(report: dict[str, Any]) -> None:
    html = render(report)
    rest = html.replace("http://www.w3.org/2000/svg", "").replace(
        "/*! https://github.com/leeoniya/uPlot (v1.6.32) */", ""
    )
    assert set(re.findall(r"url\([^)]*\)", rest)) <= {"url(#plot)"}  # a clip path within the saved SVG
    for reference in (
        "http:",
        "https:",
        "@import",
        "fetch(",
        "XMLHttpRequest",
        "WebSocket",
        "EventSource",
        "import(",
    ):
        assert reference not in rest
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "embed", "form", "base", "video", "audio"} & set(page.tags)
    assert not {"src", "href", "srcset", "action", "data", "style"} & {name for name, _ in page.attributes}
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_policy_pins_exactly_the_scripts_and_styles(report: dict[str, Any]) -> None:
    page = Page(render(report))
    pinned = dict(
        part.strip().split(" ", 1)
        for part in next(value or "" for name, value in page.attributes if name == "content").split(";")
    )

    def hashes(texts: list[str]) -> set[str]:
        return {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts}

    assert pinned["default-src"] == "'none'"
    assert set(pinned["script-src"].split()) == hashes([text for given, text in page.scripts if "type" not in given])
    assert set(pinned["style-src"].split()) == hashes(page.styles)


def test_markup_in_names_stays_text(report: dict[str, Any]) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'<!--"
    plain = Page(render(report)).tags
    for service in report["services"]:
        service |= {"name": evil, "why": evil, "binds": evil, "slice": evil}
        for one in service["runners_up"]:
            one |= {"label": evil, "why": evil}
        for span in service["waterfall"]:
            span["site"] = evil
    report |= {"name": evil, "life": evil, "shared": evil, "emulation": [evil] * 3}
    report["slices"][0]["name"] = report["runs"][0]["name"] = evil
    page = Page(render(report))
    assert page.tags == plain
    assert page.data["services"][0]["name"] == evil


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text())
def test_any_text_is_a_name(name: str) -> None:
    page = Page(render({"name": name, "services": [{"name": name, "why": name, "verdict": "kept"}]}))
    usual = Page(render({"name": "x", "services": [{"name": "x", "why": "x", "verdict": "kept"}]}))
    assert page.tags.count("script") == usual.tags.count("script") == 3
    assert page.data["services"][0]["name"] == name


def test_size_stays_below_300_kb(report: dict[str, Any]) -> None:
    assert len(render(report).encode()) < 200_000
    rng = np.random.default_rng(0)
    hour = {
        "t_s": np.arange(3600.0),
        "percentile_ms": rng.gamma(9, 4, 3600),
        "p50_ms": rng.gamma(9, 2, 3600),
    }
    hour["percentile_ms"][1234] = 987.0
    cdf = {"ms": np.linspace(0, 99, 5000), "measured": np.linspace(0, 1, 5000), "predicted": np.linspace(0, 1, 5000)}
    report["services"] = [service | {"over_time": hour, "cdf": cdf} for service in report["services"] * 4]
    html = render(report)
    assert len(html.encode()) < 300_000
    assert max(Page(html).data["services"][0]["over_time"]["percentile_ms"]) == 987.0  # no peak is lost


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=20, unique=True), st.floats(0.02, 0.98))
def test_a_quantile_of_points_is_interpolated(shares: list[float], q: float) -> None:
    shares = sorted(shares)
    ms = [float(10 * at) for at in range(len(shares))]
    found = at_quantile(ms, shares, q)
    if q > shares[-1]:
        assert found is None
    else:
        assert found == pytest.approx(float(np.interp(q, shares, ms)))


def test_save_makes_the_folder(tmp_path: Path, report: dict[str, Any]) -> None:
    path = save(report, tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == render(report)


def test_a_folder_is_no_page(tmp_path: Path, report: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(is a directory\); name a file"):
        save(report, tmp_path)


def test_modules_are_bundled_in_order_of_need(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        "a.js": 'import {b} from "./b.js";\nimport {c} from "./c.js";\nb(c);\n',
        "b.js": 'import {c} from "./c.js";\nexport function b() { return c; }\n',
        "c.js": "export const c = 1;\n",
    }
    monkeypatch.setattr(bundle, "source", modules.__getitem__)
    made = bundle.bundle("a")
    assert [made.index(f"const module_{name}") for name in "cba"] == sorted(
        made.index(f"const module_{n}") for n in "abc"
    )
    assert made.count("const module_c") == 1
    modules["c.js"] = 'import {b} from "./b.js";\nexport const c = 1;\n'
    with pytest.raises(ValueError, match=r"a -> b -> c -> b\.js import each other"):
        bundle.bundle("a")
    modules["c.js"] = "export default 1;\n"
    with pytest.raises(ValueError, match="cannot inline"):
        bundle.bundle("a")


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of #rgb or #rrggbb."""
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(dark: bool) -> None:
    light_css, dark_css = bundle.source("report.css").split("@media screen and (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", light_css))
    if dark:
        colours |= dict(re.findall(r"--([\w-]+): (#\w+);", dark_css))
    pairs = [
        ("ink", "bg"),
        ("dim", "bg"),
        ("ink", "panel"),
        ("dim", "panel"),
        ("predicted", "panel"),
        ("broken", "panel"),
    ]
    pairs += [(f"slice-{at}", "panel") for at in range(3)] + [("panel", "broken"), ("broken", "broken-bg")]
    pairs += [("kept", "kept-bg"), ("close", "close-bg"), ("few", "few-bg"), ("ink", "broken-bg"), ("dim", "broken-bg")]
    for front, back in pairs:
        high, low = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


def test_the_wheel_holds_the_page(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns("__pycache__", "*.npz")
    shutil.copytree(ROOT / "src" / "airserve", tree / "src" / "airserve", ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(tree),
    ]
    subprocess.run(command, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    here = [file.name for file in files("airserve.web").joinpath("static").iterdir()]
    assert "uPlot.LICENSE" in here
    assert not {f"airserve/web/static/{name}" for name in here} - set(names)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is only rendered, not run")
def test_a_browser_draws_every_panel(tmp_path: Path, verdicts: dict[str, Any]) -> None:
    page = save(verdicts, tmp_path / "report.html")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*command, f"{page.as_uri()}#service=meters"], capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr  # no error, and the policy refused nothing
    drawn = Page(done.stdout)
    assert drawn.tags.count("canvas") == 3 + len(verdicts["slices"])
    assert "waterfall" in [value for name, value in drawn.attributes if name == "class"]
    cards = [value for name, value in drawn.attributes if name == "value"]
    assert cards == ["inspect", "guide", "meters", "safety-stop", "pinned cut/recognise"]
    assert "Where the milliseconds go meters" in drawn.text


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here: the page's script is not run")
@pytest.mark.parametrize("value", [31.24, 248.4, 0.0432, 0.0, 0.0004, 0.0996, -0.04])
def test_the_page_and_the_terminal_write_a_latency_alike(tmp_path: Path, value: float) -> None:
    module = tmp_path / "words.mjs"
    module.write_text(bundle.source("words.js") + f"\nconsole.log(ms({value}), signed({value}));\n")
    done = subprocess.run(["node", str(module)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [ms(value), signed(value)]


def span(slow_ms: float, predicted_slow_ms: float | None) -> dict[str, Any]:
    return {
        "kind": "air",
        "direction": "up",
        "site": "hall",
        "slow_ms": slow_ms,
        "predicted_slow_ms": predicted_slow_ms,
    }


@pytest.mark.parametrize(
    ("spans", "guilty"),
    [
        ([span(30.0, 29.5), span(9.0, 5.0)], 1),  # 4 ms over the prediction, though the shorter
        ([span(30.0, 29.5), span(9.0, 8.6)], None),  # all within 1 ms and 3 % of 50 ms
        ([span(30.0, None), span(9.0, None)], 0),  # nothing predicted: the longest
        ([], None),
    ],
)
def test_the_guilty_span_costs_most_against_the_plan(spans: list[dict[str, Any]], guilty: int | None) -> None:
    seen = view({"services": [{"promise_ms": 50, "sent": 9, "verdict": "not kept", "waterfall": spans}]})
    assert seen["services"][0]["guilty"] == guilty
