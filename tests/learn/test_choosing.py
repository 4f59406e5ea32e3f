"""Choosing among replies: what splits share, rows as they are drawn, what is read, and a net that learns to."""

from collections import Counter

import numpy as np
import pytest
import torch

from airserve.learn import choosing
from airserve.learn.answering import Questions
from airserve.learn.nets import Form, starspace
from airserve.learn.preparing import preprocess
from airserve.learn.words import CHOICE_ID


def made(many: int = 120) -> Questions:
    """A question has a word of its own and a colour; its reply names what is of that colour, and shares no word."""
    things = {"red": "blood", "green": "grass", "blue": "sky", "white": "snow", "black": "coal"}
    colours = list(things)
    asked = tuple(f"what is {colours[k % 5]} w{k}" for k in range(many))
    said = tuple(f"{things[colours[k % 5]]} v{k}" for k in range(many))
    return Questions(asked, said, np.arange(many)[:, None])


def test_no_question_and_no_reply_is_in_two_splits() -> None:
    right = [[0, -1], [1, 2], [2, -1], [3, -1], [4, -1]] + [[k, -1] for k in range(5, 60)]
    asked = ["Hello", "hello!", "bye", "who", "WHO ?"] + [f"question {chr(97 + k % 26)}{k // 26}" for k in range(55)]
    data = Questions(tuple(asked), tuple(f"r{k}" for k in range(60)), np.array(right))
    split = choosing.divided(data)
    assert sorted(row for part in split for row in part) == list(range(60))
    replies = [set(choosing.replies(data, part)) for part in split]
    assert not replies[0] & (replies[1] | replies[2])
    assert not replies[1] & replies[2]
    home = {row: k for k, part in enumerate(split) for row in part}
    assert home[0] == home[1] == home[2]  # the same words, then the same reply
    assert home[3] == home[4]


def test_rows_hold_one_right_reply_at_any_place() -> None:
    data = made()
    _, _, test = choosing.divided(data)
    rows, labels = choosing.draw(data, test, 20, 0)
    right = data.right[rows[:, 0], 0]
    assert (rows[:, 1:] == right[:, None]).sum(1).tolist() == [1] * len(rows)
    np.testing.assert_array_equal(rows[np.arange(len(rows)), 1 + labels], right)
    assert all(len(set(row)) == choosing.CHOICES for row in rows[:, 1:].tolist())
    assert set(rows[:, 1:].ravel()) <= set(choosing.replies(data, test))
    assert min(Counter(labels.tolist()).values()) > len(labels) / choosing.CHOICES * 0.7


def test_what_is_read_is_the_question_and_its_choices() -> None:
    data = made()
    found = choosing.choices("colours", data)
    assert (found.words[CHOICE_ID], len(found.classes)) == ("<choice>", choosing.CHOICES)
    rows, labels = choosing.draw(data, choosing.divided(data)[0], choosing.TIMES[0], 0)
    np.testing.assert_array_equal(found.train.labels, labels)
    asked = [found.words[k] for k in found.train.inputs[0]]
    question, *four = " ".join(word for word in asked if word != "<end>").split(" <choice> ")
    assert question.startswith(data.questions[rows[0, 0]].rpartition(" ")[0])
    assert [each.split()[0] for each in four] == [data.answers[k].split()[0] for k in rows[0, 1:]]


def test_choosing_by_words_in_common_by_hand() -> None:
    many = 40
    names = [f"{a}{b}" for a in "abcdefgh" for b in "vwxyz"]
    data = Questions(tuple(f"who is {n}" for n in names), tuple(f"it is {n}" for n in names), np.arange(many)[:, None])
    _, _, test = choosing.divided(data)
    assert choosing.nearest(data, test, np.eye(many)) == 1.0
    assert choosing.nearest(data, test, -np.eye(many)) == 0.0
    assert choosing.baseline(data).score < 1.0  # names of the test split are in no text of the train split


def test_a_net_learns_what_answers_without_a_word_in_common() -> None:
    torch.manual_seed(0)
    prepared = preprocess(choosing.choices("colours", made()))
    net = starspace.build(starspace.Config(width=32), prepared.form)
    rule = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(30):
        rows = torch.randint(len(prepared.train[0]), (64,))
        rule.zero_grad()
        torch.nn.functional.cross_entropy(net(prepared.train[0][rows]), prepared.train[1][rows]).backward()
        rule.step()
    found = net.eval()(prepared.validation[0]).argmax(1)
    assert (
        found == prepared.validation[1]
    ).float().mean() > 0.65  # of .74: in half of the rows a wrong reply is of the colour too


def test_scores_of_choices_are_their_formula() -> None:
    """Bags, weighted and turned, and their cosines, by loops."""
    torch.manual_seed(0)
    net = starspace.build(starspace.Config(width=3), Form((9,), 2, ids=(8,))).eval()
    with torch.no_grad():
        net.weights.weight.normal_()
    ids = [3, 4, CHOICE_ID, 5, CHOICE_ID, 6, 7, 3, 0]
    table, weight = net.words.weight.detach().numpy(), np.exp(net.weights.weight.detach().numpy()[:, 0])
    bags = [sum(table[k] * weight[k] for k in part) for part in ([3, 4], [5], [6, 7, 3])]
    turned = bags[0] + net.pair.weight.detach().numpy() @ bags[0]
    wanted = [10 * turned @ bag / np.linalg.norm(turned) / np.linalg.norm(bag) for bag in bags[1:]]
    assert net(torch.tensor([ids])).detach().numpy()[0] == pytest.approx(wanted, rel=1e-5)
