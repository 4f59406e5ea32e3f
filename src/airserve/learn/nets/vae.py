"""A variational autoencoder: pictures to few numbers and back. Kingma and Welling 2014, arXiv:1312.6114, appendix C."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from airserve.learn.exporting import Graph, Sense
from airserve.learn.losses import negative_elbo
from airserve.learn.nets import Form
from airserve.model import Array


@dataclass(frozen=True)
class Config:
    latent: int = 20  # numbers that stand for a picture
    hidden: int = 400
    epochs: int = 8
    batch: int = 128
    rate: float = 2e-3  # peak learning rate
    decay: float = 1e-4  # weight decay


def build(config: Config, form: Form) -> nn.Module:
    """An encoder and a decoder of pictures (height, width) or (height, width, channels) in 0 to 1."""
    form.channels("vae")
    return VAE(form.shape, config)


class VAE(nn.Module):
    """Encodes a picture as a normal distribution, draws from it, and decodes what was drawn."""

    answers = "picture"

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(math.prod(shape), config)
        self.decoder = Decoder(shape, config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, ...) -> logits of pixels (n, ...), mean and log variance of the latent (n, latent), one draw."""
        mean, log_variance = self.encoder(x)
        return self.decoder(draw(mean, log_variance)), mean, log_variance

    def objective(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Minus the evidence lower bound of pictures in 0 to 1, nats, shape (); labels do not matter."""
        logits, mean, log_variance = self(inputs)
        return negative_elbo(logits, inputs, mean, log_variance)

    def graphs(self, sense: Sense, rows: Array) -> dict[str, Graph]:
        """The encoder takes what the sensor gives; the decoder gives pixels in 0 to 1."""
        few, free = torch.tensor(rows[:3]), {0: "n"}
        latents = torch.linspace(-2, 2, 3 * self.decoder.inside.in_features).reshape(3, -1)
        ways = {"mean": free, "log_variance": free}
        return {
            "encoder": Graph(sense(self.encoder), {"input": free}, ways, [(few[:1],), (few,)]),
            "decoder": Graph(Shown(self.decoder), {"latent": free}, {"pixels": free}, [(latents[:1],), (latents,)]),
        }


def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A draw whose randomness stands beside the weights, so that they have a gradient (section 2.4)."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


class Encoder(nn.Module):
    def __init__(self, pixels: int, config: Config) -> None:
        super().__init__()
        self.inside = nn.Linear(pixels, config.hidden)
        self.mean = nn.Linear(config.hidden, config.latent)
        self.log_variance = nn.Linear(config.hidden, config.latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, ...) in 0 to 1 -> (n, latent), (n, latent)."""
        x = torch.relu(self.inside(x.flatten(1)))
        return self.mean(x), self.log_variance(x)


class Decoder(nn.Module):
    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__()
        self.shape = shape
        self.inside = nn.Linear(config.latent, config.hidden)
        self.pixels = nn.Linear(config.hidden, math.prod(shape))

    def forward(self, latent: Tensor) -> Tensor:
        """(n, latent) -> logits of pixels, (n, ...)."""
        return self.pixels(torch.relu(self.inside(latent))).unflatten(1, self.shape)


class Shown(nn.Module):
    """Logits as pixels in 0 to 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, latent: Tensor) -> Tensor:
        return self.net(latent).sigmoid()
