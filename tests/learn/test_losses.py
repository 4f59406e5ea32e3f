"""Losses: gradients against finite differences, values worked out by hand, by brute force and by closed forms."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from airserve.learn import losses

CLASSES = torch.tensor([0, 2, 1])
SHARES = torch.tensor([[0.2, 0.9], [0.0, 1.0], [0.5, 0.1]], dtype=torch.float64)
TARGETS = torch.tensor([[1, 2], [2, 2]])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def spell(logits: Tensor) -> Tensor:
    return losses.connectionist(logits, TARGETS, torch.tensor([4, 4]), torch.tensor([2, 2]))


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (lambda x: losses.squared_error(x, SHARES), [(3, 2)]),
        (lambda x: losses.cross_entropy(x, CLASSES), [(3, 3)]),
        (lambda x: losses.cross_entropy(x, CLASSES, WEIGHTS, 0.1), [(3, 3)]),
        (lambda x: losses.cross_entropy(x, TARGETS), [(2, 2, 3)]),
        (lambda x, w: losses.linear_cross_entropy(x, w, CLASSES), [(3, 2), (4, 2)]),
        (lambda x: losses.binary_cross_entropy(x, SHARES), [(3, 2)]),
        (losses.divergence, [(3, 2), (3, 2)]),
        (lambda x, m, v: losses.negative_elbo(x, SHARES, m, v), [(3, 2), (3, 4), (3, 4)]),
        (losses.discriminator, [(3,), (3,)]),
        (lambda real, made: losses.discriminator(real, made, 0.1), [(3,), (3,)]),
        (losses.generator, [(3,)]),
        (spell, [(2, 4, 3)]),
        (lambda s, t: losses.distillation(s, t, CLASSES), [(3, 3), (3, 3)]),
    ],
)
def test_gradients_are_finite_differences(loss: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(loss, [rows(*shape) for shape in shapes])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_linear_cross_entropy_is_that_of_its_logits(precision: torch.dtype) -> None:
    """Loss and both gradients, when it is summed with others as well, and without gradients."""
    torch.manual_seed(0)
    x, weight, classes = 3 * torch.randn(40, 16), torch.randn(50, 16), torch.randint(0, 50, (40,))
    found = []
    for loss in (
        losses.linear_cross_entropy,
        lambda x, weight, classes: losses.cross_entropy(torch.nn.functional.linear(x, weight).float(), classes),
    ):
        given = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            value = loss(*given, classes)
            with torch.no_grad():
                assert loss(*given, classes).item() == pytest.approx(value.item(), rel=1e-5)
        (2 * value).backward()
        found.append([value.detach()[None], *(part.grad for part in given)])
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5 if precision == torch.float32 else 2e-2, atol=1e-4)


def test_cross_entropy_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4."""
    logits = torch.tensor([[math.log(2), 0.0, 0.0]] * 2)
    each = [math.log(2), math.log(4)]
    classes = torch.tensor([0, 1])
    assert losses.cross_entropy(logits, classes).item() == pytest.approx(sum(each) / 2)
    weighted = losses.cross_entropy(logits, classes, torch.tensor([1.0, 3.0, 1.0])).item()
    assert weighted == pytest.approx((each[0] + 3 * each[1]) / 2)
    everywhere = (math.log(2) + 2 * math.log(4)) / 3
    smoothed = losses.cross_entropy(logits, classes, smoothing=0.3).item()
    assert smoothed == pytest.approx(0.7 * sum(each) / 2 + 0.3 * everywhere)
    text = losses.cross_entropy(logits[None], torch.tensor([[0, -100]])).item()  # a place that does not count
    assert text == pytest.approx(math.log(2))


def test_squared_error_and_binary_cross_entropy_by_hand() -> None:
    assert losses.squared_error(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])).item() == pytest.approx(2.5)
    logit = torch.tensor([math.log(3)])  # p = 3/4
    for target in (0.0, 0.2, 1.0):
        wanted = -target * math.log(3 / 4) - (1 - target) * math.log(1 / 4)
        assert losses.binary_cross_entropy(logit, torch.tensor([target])).item() == pytest.approx(wanted)


def test_divergence_is_the_integral() -> None:
    """KL(q || p) of one dimension, integrated over a fine grid."""
    for mean, variance in ((0.0, 1.0), (1.5, 0.3), (-0.7, 2.0)):
        x = np.linspace(-15, 15, 300_001)
        q = np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        log_p, log_q = -(x**2) / 2 - np.log(2 * np.pi) / 2, np.log(np.maximum(q, 1e-300))
        wanted = np.trapezoid(q * (log_q - log_p), x)
        found = losses.divergence(torch.tensor([[mean]]), torch.tensor([[math.log(variance)]])).item()
        assert found == pytest.approx(wanted, abs=1e-6)


def test_the_elbo_is_description_and_divergence() -> None:
    logits, targets = torch.zeros(1, 2, 3), torch.rand(1, 2, 3)  # each pixel ln 2, whatever it is
    found = losses.negative_elbo(logits, targets, torch.tensor([[2.0]]), torch.tensor([[0.0]])).item()
    assert found == pytest.approx(6 * math.log(2) + 2.0)


def test_adversaries_by_hand() -> None:
    """Where the discriminator cannot tell, D = 1/2: it loses ln 4, the generator ln 2 (Goodfellow, theorem 1)."""
    even = torch.zeros(3)
    assert losses.discriminator(even, even).item() == pytest.approx(math.log(4))
    assert losses.generator(even).item() == pytest.approx(math.log(2))
    sure = torch.full((3,), math.log(9))  # D = 0.9
    assert losses.discriminator(sure, -sure).item() == pytest.approx(-2 * math.log(0.9))
    assert losses.generator(-sure).item() == pytest.approx(-math.log(0.1))
    smoothed = -0.8 * math.log(0.9) - 0.2 * math.log(0.1) - math.log(0.9)
    assert losses.discriminator(sure, -sure, 0.2).item() == pytest.approx(smoothed)


@pytest.mark.parametrize("target", [[1], [1, 2], [2, 2], [1, 2, 1]])
def test_ctc_is_the_sum_over_all_alignments(target: list[int]) -> None:
    """Every path of symbols over four steps, those that collapse to the target: by brute force."""
    torch.manual_seed(1)
    logits = torch.randn(1, 4, 3, dtype=torch.float64)
    p = logits.softmax(-1)[0].numpy()
    total = 0.0
    for path in itertools.product(range(3), repeat=4):
        if [s for s, _ in itertools.groupby(path) if s] == target:
            total += math.prod(p[t, s] for t, s in enumerate(path))
    lengths = torch.tensor([4]), torch.tensor([len(target)])
    assert losses.connectionist(logits, torch.tensor([target]), *lengths).item() == pytest.approx(-math.log(total))


def test_distillation_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    soft = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # at temperature 2 the teacher says 3/4
    found = losses.distillation(student, teacher, torch.tensor([1]), temperature=2.0, weight=0.8).item()
    assert found == pytest.approx(0.8 * 4 * soft + 0.2 * math.log(2))
    assert losses.distillation(teacher, teacher, torch.tensor([0]), weight=1.0).item() == pytest.approx(0, abs=1e-6)


def test_class_weights_make_classes_count_alike() -> None:
    classes = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = losses.class_weights(classes, 3, 1.0)
    np.testing.assert_allclose([weights[k] * (classes == k).sum() for k in range(3)], [10 / 3] * 3, rtol=1e-6)
    assert losses.class_weights(classes, 3, 0.0).tolist() == [1, 1, 1]
