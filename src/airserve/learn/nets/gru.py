"""Gated recurrent units read a text, the largest of their states answers. Cho et al. 2014, arXiv:1406.1078."""

from dataclasses import dataclass

from torch import nn

from airserve.learn.nets import Form
from airserve.learn.nets.lstm import Config as LSTMConfig
from airserve.learn.nets.lstm import Reader


@dataclass(frozen=True)
class Config(LSTMConfig):
    pass


def build(config: Config, form: Form) -> nn.Module:
    """A reader of texts. Raises `ModelError` on other inputs."""
    return Reader(nn.GRU, form.words("gru"), config, form.outputs)
