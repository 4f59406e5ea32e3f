"""Losses: what training makes small, in nats where they are likelihoods; means over the rows of a batch."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs, targets -> ()


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of the squared errors. Legendre 1805; Gauss 1809."""
    return F.mse_loss(outputs, targets)


def cross_entropy(
    logits: Tensor, classes: Tensor, weights: Tensor | None = None, smoothing: float = 0.0, ignored: int = -100
) -> Tensor:
    """The mean of -log p(class), p the softmax of logits (..., classes).

    `weights`, one per class, are factors of it, so that a rare class counts; the mean is over rows and not over their
    weights, so that parts of a batch add up to it. `smoothing` gives that part of a label's weight to all classes alike
    (Szegedy et al. 2016, arXiv:1512.00567). A class of `ignored` does not count.
    """
    logits = logits if logits.ndim == 2 else logits.movedim(-1, 1)
    if weights is None:
        return F.cross_entropy(logits, classes, ignore_index=ignored, label_smoothing=smoothing)
    each = F.cross_entropy(logits, classes, weights, ignore_index=ignored, reduction="none", label_smoothing=smoothing)
    return each.sum() / (classes != ignored).sum()


def linear_cross_entropy(x: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """The mean of -log p(class), p the softmax of x weight^T: (n, width), (classes, width), (n,) -> ().

    As `cross_entropy` of these logits, at about half its cost on a CPU with many classes: the gradients are found at
    once, in the memory of the logits. Matrices are multiplied as precisely as autocast says, the rest is float32.
    """
    if not torch.is_grad_enabled():
        return F.cross_entropy(F.linear(x, weight).float(), classes)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x, weight = (part.to(torch.get_autocast_dtype(device)) for part in (x, weight))
    loss: Tensor = _LinearCrossEntropy.apply(x, weight, classes)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """d loss / d logits = (p - 1 of the class) / n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
        logits = F.linear(x, weight)
        p = logits.to(torch.promote_types(logits.dtype, torch.float32))
        p.sub_(p.amax(1, keepdim=True))
        wanted = p.gather(1, classes[:, None])
        total = p.exp_().sum(1, keepdim=True)
        loss = (total.log() - wanted).mean()
        p.div_(total * len(x)).scatter_add_(1, classes[:, None], torch.full_like(wanted, -1 / len(x)))
        slope = p.to(x.dtype)
        ctx.save_for_backward(slope @ weight, slope.T @ x)
        return loss

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, None]:
        of_x, of_weight = ctx.saved_tensors
        return of_x * given[0].to(of_x.dtype), of_weight * given[0].to(of_weight.dtype), None


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of -t log p - (1 - t) log(1 - p), p the logistic of the logit, t in 0 to 1."""
    return F.binary_cross_entropy_with_logits(logits, targets)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each row, shape (n,). Kingma and Welling 2014, arXiv:1312.6114, B."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)


def negative_elbo(logits: Tensor, targets: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Minus the evidence lower bound: nats to describe a row's pixels in 0 to 1, and its latent's divergence.

    Kingma and Welling 2014, equation 7 with one draw and Bernoulli pixels; (n, ...), (n, ...), (n, d), (n, d).
    """
    described = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).sum(1)
    return (described + divergence(mean, log_variance)).mean()


def discriminator(real: Tensor, made: Tensor, smoothing: float = 0.0) -> Tensor:
    """What a discriminator loses by its logits for real rows and made ones. Goodfellow et al. 2014, arXiv:1406.2661.

    `smoothing` is the probability that a real row's label leaves to "made", and no made row's to "real" (one-sided:
    Salimans et al. 2016, arXiv:1606.03498, section 3.4).
    """
    return F.softplus(-real).mean() + smoothing * real.mean() + F.softplus(made).mean()


def generator(made: Tensor) -> Tensor:
    """What a generator loses by the discriminator's logits for its rows: -log D, which does not saturate (3)."""
    return F.softplus(-made).mean()


def contrast(vectors: Tensor, temperature: float) -> Tensor:
    """Nats to tell the other view of each row from all others: NT-Xent, Chen et al. 2020, arXiv:2002.05709, equation 1.

    `vectors`, (2 n, d), compared by their angles: rows k and n + k are views of one thing.
    """
    unit = F.normalize(vectors, dim=1)
    likeness = (unit @ unit.T / temperature).fill_diagonal_(float("-inf"))  # not with itself
    return F.cross_entropy(likeness, torch.arange(len(vectors), device=vectors.device).roll(len(vectors) // 2))


def connectionist(logits: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """CTC: -log of the sum over all alignments, mean over rows. Graves et al. 2006, ICML.

    Logits (n, time, symbols), symbol 0 blank; targets (n, longest), no 0 within `target_lengths`. A row whose target
    fits in no alignment counts 0.
    """
    log_p = logits.log_softmax(-1).transpose(0, 1)
    each = F.ctc_loss(log_p, targets, lengths, target_lengths, reduction="none", zero_infinity=True)
    return each.mean()


def distillation(
    student: Tensor, teacher: Tensor, classes: Tensor, temperature: float = 4.0, weight: float = 0.9
) -> Tensor:
    """`weight` of the teacher's softened answer, the rest of the label. Hinton et al. 2015, arXiv:1503.02531.

    The softened part is multiplied by the temperature squared, so that its gradient keeps its size.
    """
    soft = F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    return weight * temperature**2 * soft + (1 - weight) * cross_entropy(student, classes)


def class_weights(classes: Tensor, many: int, balance: float) -> Tensor:
    """One weight per class, (1 / its rows) ** balance, scaled to a mean of 1 over rows; 1: all classes count alike.

    >>> class_weights(torch.tensor([0, 0, 0, 1]), 2, 1.0).tolist()
    [0.6666666865348816, 2.0]
    """
    rows = torch.bincount(classes.flatten(), minlength=many)
    weights = (1 / rows.clamp(min=1)) ** balance
    return weights * rows.sum() / (weights * rows).sum()


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "squared-error": squared_error}  # what tasks ask for
