"""Questions and answers: hits by hand, pages that are read, vectors that are near, and the published figures."""

from pathlib import Path

import numpy as np
import pytest

from airserve.learn.answering import Questions, assess, baseline
from airserve.learn.tasks import TaskError, chatterbot, debian_faq

PAGE = """<html><body><h2 class="title"><a id="s1"></a>1.1.&nbsp;What is <em>this</em>?</h2><p>A list of questions.</p>
<h2 class="title"><a id="s2"></a>1.2. A note</h2><p>Notes are &lt;short&gt;.</p>
<h3 class="title"><a id="s3"></a>1.2.1. How is a kernel built?</h3><p>The kernel is built with make.</p></body>"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "debian-faq"
    folder.mkdir()
    (folder / "one.en.html").write_text(PAGE)
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path))
    return folder


@pytest.mark.usefixtures("page")
def test_sections_are_questions_and_answers() -> None:
    data = debian_faq.questions()
    assert data.questions == ("What is this?", "How is a kernel built?")
    assert data.answers == ("A list of questions.", "Notes are <short>.", "The kernel is built with make.")
    assert data.right.tolist() == [[0], [2]]
    assert baseline(data, 3).score == 1.0


def test_hits_by_hand() -> None:
    data = Questions(("a", "b", "c"), ("x", "y", "z"), np.array([[0, -1], [1, -1], [2, -1]]))
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.1], [0.3, 0.2, 0.1]])
    assert [data.hits(scores, best) for best in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_nearest_vector_answers_whatever_its_length() -> None:
    data = Questions(("east", "north"), ("n", "e"), np.array([[1], [0]]))
    places = {"east": (5.0, 0.1), "north": (0.0, 0.2), "e": (0.01, 0.0), "n": (0.3, 9.0)}
    found = assess(lambda texts: np.array([places[text] for text in texts]), data)
    assert found == {"hit@1": 1.0, "hit@5": 1.0}


@pytest.mark.skipif(not Path(debian_faq.USUAL).is_dir(), reason="debian-faq is absent")
def test_the_faq_is_the_published_one() -> None:
    data = debian_faq.questions()
    assert len(data.questions) > 100
    assert len(data.answers) > len(data.questions)
    assert 0.3 < baseline(data).score < 0.5
    assert all(answer for answer in data.answers)


def test_absent_or_empty_pages_are_one_sentence(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (page / "one.en.html").write_text("nothing")
    with pytest.raises(TaskError, match="have no sections; install debian-faq again"):
        debian_faq.questions()
    monkeypatch.setenv("AIRSERVE_DATA", str(page / "none"))
    monkeypatch.setattr(debian_faq, "USUAL", str(page / "none"))
    with pytest.raises(TaskError, match="apt-get install debian-faq") as caught:
        debian_faq.questions()
    assert "\n" not in str(caught.value)


def test_any_of_several_answers_is_right() -> None:
    data = Questions(("a", "b"), ("x", "y", "z"), np.array([[0, 2], [1, -1]]))
    scores = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
    assert [data.hits(scores, best) for best in (1, 2)] == [0.5, 1.0]


def test_conversations_of_two_turns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "chatterbot"
    folder.mkdir()
    talks = "- [Hello, Hi]\n- [Hello,  Good  day]\n- [Bye, Hi]\n- [one, two, three]\n- [Hello, Hi]\n"
    (folder / "one.yml").write_text(f"categories: [x]\nconversations:\n{talks}")
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path))
    data = chatterbot.questions()
    assert (data.questions, data.answers) == (("Hello", "Bye"), ("Hi", "Good day"))
    assert data.right.tolist() == [[0, 1], [0, -1]]
    (folder / "two.yml").write_text("categories: [x]")
    with pytest.raises(TaskError, match=r"two\.yml cannot be read: .*; install chatterbot-corpus again"):
        chatterbot.questions()
    for file in folder.iterdir():
        file.unlink()
    monkeypatch.setattr(chatterbot, "PACKAGE", "no_package_of_this_name")
    with pytest.raises(TaskError, match="pip install --no-deps chatterbot-corpus") as caught:
        chatterbot.questions()
    assert "\n" not in str(caught.value)
