"""Adversarial networks of convolutions: one makes pictures, one tells them from real ones. Radford et al. 2016, DCGAN,
arXiv:1511.06434; Goodfellow et al. 2014, arXiv:1406.2661. The generator that is kept has the mean of its weights over
the last steps: Yazici et al. 2019, arXiv:1806.04498."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from airserve.learn.exporting import Graph, Sense
from airserve.learn.losses import discriminator, generator
from airserve.learn.nets import Form
from airserve.learn.nets.vae import Shown
from airserve.model import Array, ModelError


@dataclass(frozen=True)
class Config:
    latent: int = 64  # numbers from which a picture is made
    width: int = 32  # channels of the larger layers; the smaller have twice as many
    epochs: int = 6
    batch: int = 64
    rate: float = 1e-3  # peak learning rate
    decay: float = 1e-6  # weight decay
    momentum: float = 0.5  # less than usual: what a step answers to has moved by the next
    smoothing: float = 0.1  # of the label of real pictures: Salimans et al. 2016, arXiv:1606.03498, section 3.4
    average: float = 0.998  # part of the mean weights that a step leaves: those of 500 steps count


def build(config: Config, form: Form) -> nn.Module:
    """Both networks for pictures whose sides are multiples of 4. Raises `ModelError` on other inputs."""
    channels = form.channels("gan")
    if form.shape[0] % 4 or form.shape[1] % 4:
        raise ModelError(f"gan makes pictures whose sides are multiples of 4, not {form}; use vae.")
    return GAN(channels, form.shape, config)


class GAN(nn.Module):
    """Both learn in one step: the discriminator from pictures that count as given, the generator from a discriminator
    that counts as given."""

    answers = "picture"
    keeps_last = True

    def __init__(self, channels: int, shape: tuple[int, ...], config: Config) -> None:
        super().__init__()
        self.latent, self.smoothing = config.latent, config.smoothing
        self.generator = Generator(channels, shape, config)
        self.discriminator = Discriminator(channels, shape, config)
        self.average = Average(self.generator, config.average)

    def objective(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """What both lose on a batch of pictures in 0 to 1, nats, shape (); labels do not matter."""
        if self.training:
            self.average.follow(self.generator)
        latent = torch.randn(len(inputs), self.latent, device=inputs.device)
        made = self.generator(latent).float().sigmoid()
        given = {key: weight.detach() for key, weight in self.discriminator.named_parameters()}
        judged = functional_call(self.discriminator, given, (made,))
        real, fake = self.discriminator(inputs), self.discriminator(made.detach())
        of_discriminator = discriminator(real, fake, self.smoothing)
        return of_discriminator + generator(judged)

    def graphs(self, sense: Sense, rows: Array) -> dict[str, Graph]:
        """The generator gives pixels in 0 to 1; the discriminator takes what the sensor gives."""
        few, free = torch.tensor(rows[:3]), {0: "n"}
        latents = torch.linspace(-2, 2, 3 * self.latent).reshape(3, -1)
        shown = Shown(self.average.of(self.generator))
        return {
            "generator": Graph(shown, {"latent": free}, {"pixels": free}, [(latents[:1],), (latents,)]),
            "discriminator": Graph(sense(self.discriminator), {"input": free}, {"logit": free}, [(few[:1],), (few,)]),
        }


class Average(nn.Module):
    """The exponential mean of a net's weights and of its norms' statistics over the steps; no step of an optimizer
    moves it."""

    steps: Tensor

    def __init__(self, net: nn.Module, kept: float) -> None:
        super().__init__()
        self.kept = kept
        self.register_buffer("steps", torch.tensor(0))
        for name, value in net.state_dict().items():
            self.register_buffer(name.replace(".", "_"), value.clone())

    @torch.no_grad()
    def follow(self, net: nn.Module) -> None:
        """One step nearer to the net; the first steps count alike, so that the weights drawn are soon forgotten."""
        part = max(1 - self.kept, 1 / (int(self.steps) + 1))
        for name, value in net.state_dict().items():
            mean = self.get_buffer(name.replace(".", "_"))
            if mean.is_floating_point():
                mean.lerp_(value, part)
            else:
                mean.copy_(value)
        self.steps += 1

    def of(self, net: nn.Module) -> nn.Module:
        """A copy of the net that has the mean weights."""
        made = copy.deepcopy(net)
        made.load_state_dict({name: self.get_buffer(name.replace(".", "_")) for name in net.state_dict()})
        return made


class Generator(nn.Module):
    def __init__(self, channels: int, shape: tuple[int, ...], config: Config) -> None:
        super().__init__()
        width, self.shape = config.width, shape
        self.places = shape[0] // 4, shape[1] // 4
        self.inside = nn.Linear(config.latent, 4 * width * self.places[0] * self.places[1], bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(4 * width), nn.BatchNorm2d(2 * width)
        self.grow1 = nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False)
        self.grow2 = nn.ConvTranspose2d(2 * width, channels, 4, stride=2, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """(n, latent) -> logits of pixels, (n, ...)."""
        x = self.inside(latent).unflatten(1, (-1, *self.places))
        x = F.relu(self.norm1(x))  # (n, 4 width, height / 4, width / 4)
        x = F.relu(self.norm2(self.grow1(x)))  # (n, 2 width, height / 2, width / 2)
        return self.grow2(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, self.shape)


class Discriminator(nn.Module):
    def __init__(self, channels: int, shape: tuple[int, ...], config: Config) -> None:
        super().__init__()
        width = config.width
        self.shrink1 = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.shrink2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.answer = nn.Linear(2 * width * (shape[0] // 4) * (shape[1] // 4), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, height, width) or (n, height, width, channels) in 0 to 1 -> logits that they are real, (n,)."""
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        x = F.leaky_relu(self.shrink1(2 * x - 1), 0.2)  # (n, width, height / 2, width / 2)
        x = F.leaky_relu(self.norm(self.shrink2(x)), 0.2)  # (n, 2 width, height / 4, width / 4)
        return self.answer(x.flatten(1))[:, 0].float()
