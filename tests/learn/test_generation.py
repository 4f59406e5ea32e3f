"""What is said of made pictures, against closed forms and by hand; both nets on the digits."""

import numpy as np
import pytest
import torch
from PIL import Image

from airserve.catalog import nets
from airserve.learn import generation
from airserve.learn.losses import divergence
from airserve.learn.nets import Form
from airserve.learn.nets.gan import Average
from airserve.learn.tasks import Data, Split, digits_generation
from airserve.learn.training import train
from airserve.model import Engine, ModelError
from airserve.registry import Registry


def test_the_divergence_is_the_integral() -> None:
    """KL(N(m, s^2) || N(0, 1)) by numerical integration, both here and as training has it."""
    x = np.linspace(-30, 30, 600_001)
    for mean, log_variance in ((0.0, 0.0), (1.3, -0.7), (-2.0, 1.1)):
        log_q = -0.5 * ((x - mean) ** 2 / np.exp(log_variance) + log_variance)
        integral = np.trapezoid(np.exp(log_q) / np.sqrt(2 * np.pi) * (log_q + 0.5 * x**2), x)
        found = generation.divergence(np.array([[mean]]), np.array([[log_variance]]))[0]
        assert found == pytest.approx(integral, abs=1e-6)
        assert divergence(torch.tensor([[mean]]), torch.tensor([[log_variance]])).item() == pytest.approx(
            found, abs=1e-5
        )


def test_the_distance_of_commuting_covariances_is_its_closed_form() -> None:
    """For diagonal covariances: squared differences of the means and of the deviations."""
    rng = np.random.default_rng(0)
    one, other = rng.normal([0, 3], [1, 2], (200_000, 2)), rng.normal([1, 1], [3, 2], (200_000, 2))
    assert generation.frechet(one, other) == pytest.approx(1 + 4 + (1 - 3) ** 2, rel=0.02)
    assert generation.frechet(one, one) == pytest.approx(0, abs=1e-6)


class Classifier:
    """Says the class that a picture's only pixel names, with probability about 0.88, or 1/2 for class 2."""

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        logits = np.zeros((len(inputs[0]), 3), np.float32)
        taken = inputs[0].reshape(-1)
        logits[np.arange(len(taken)), taken] = np.where(taken == 2, np.log(2), np.log(15))
        return [logits]


def test_a_class_is_seen_when_it_is_frequent_and_sure() -> None:
    rows = np.array([0, 1, 2] * 10, np.uint8).reshape(-1, 1, 1)
    split = Split(rows, rows.reshape(-1).astype(np.int64))
    data = Data("d", ("a", "b", "c"), split, split, split)
    made = np.array([0] * 49 + [1] * 1 + [2] * 50, np.uint8).reshape(-1, 1, 1)
    found = generation.judge(made, data, Classifier())
    assert (found["classes_seen"], found["confidence"]) == (1, pytest.approx(15 / 17))  # b is rare, c unsure
    assert found["variety"] == pytest.approx(made.std() / rows.std())
    same = generation.judge(np.zeros((10, 1, 1), np.uint8), data, Classifier())
    assert same["variety"] == 0  # what has collapsed
    assert same["frechet_distance"] > found["frechet_distance"] > 0


@pytest.mark.usefixtures("perceptron")  # the classifier that judges
@pytest.mark.parametrize("net", ["vae,epochs=2", "gan,width=4,epochs=1"])
def test_pictures_are_learnt_and_made_by_exported_graphs(net: str, registry: Registry) -> None:
    model = train(net, "digits-generation", registry=registry, progress=False)
    others = {part: registry.get(each) for part, each in model.lineage["parts"].items()}
    parts = {model.name.rpartition("-")[2]: model, **others}
    assert set(parts) == {"encoder", "decoder"} if "vae" in net else {"generator", "discriminator"}
    assert set(model.scores) >= {"frechet_distance", "classes_seen", "confidence"}
    assert model.scores["variety"] > 0.1
    engines = {part: Engine(each.path) for part, each in parts.items()}
    made = generation.make(engines, 16.0, many=128)
    assert (made.shape, made.dtype) == ((128, 8, 8), np.uint8)
    assert made.max() <= 16
    if "vae" in net:
        data = digits_generation.load()
        assert model.scores["nats"] == pytest.approx(generation.nats(engines["encoder"], engines["decoder"], data))
        assert model.scores["nats"] < model.scores["nats_of_independent_pixels"]
    else:
        real, noise = digits_generation.load().test.inputs, np.random.default_rng(0).integers(0, 17, (360, 8, 8))
        logits = [engines["discriminator"].run([each.astype(np.uint8)])[0] for each in (real, noise)]
        assert logits[0].shape == (360,)
        assert logits[0].mean() > logits[1].mean()  # it has never seen noise, but real ones
    with Image.open(registry.home / model.lineage["sheet"]) as page:
        assert page.size == (8 * generation.COLUMNS, 8 * generation.ROWS)
        shown = 255 - np.asarray(page).astype(int)
    assert np.array_equal(shown[8:16, 16:24], 255 - (255 - made[18] * (255 / 16)).round().astype(np.uint8))


def test_the_generators_loss_leaves_the_discriminator_alone() -> None:
    """Of both losses, each moves one network: gradients are those of two separate steps."""
    torch.manual_seed(0)
    net = nets["gan"].build(nets["gan"].Config(width=4, latent=5), Form((8, 8), 10))
    inputs = torch.rand(6, 8, 8)
    torch.manual_seed(1)
    net.objective(inputs, inputs).backward()
    found = {key: weight.grad.clone() for key, weight in net.named_parameters()}
    torch.manual_seed(1)
    made = net.generator(torch.randn(6, 5)).sigmoid()
    real, fake = net.discriminator(inputs), net.discriminator(made.detach())
    softplus = torch.nn.functional.softplus
    of_both = 0.9 * softplus(-real).mean() + 0.1 * softplus(real).mean() + softplus(fake).mean()
    wanted = torch.autograd.grad(of_both, list(net.discriminator.parameters()))
    for (key, _), gradient in zip(net.discriminator.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(found[f"discriminator.{key}"], gradient)
    of_generator = softplus(-net.discriminator(made)).mean()
    wanted = torch.autograd.grad(of_generator, list(net.generator.parameters()))
    for (key, _), gradient in zip(net.generator.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(found[f"generator.{key}"], gradient)


def test_the_generator_that_is_kept_has_mean_weights() -> None:
    """Against the sum over all steps: the first ones alike, then each step with a fixed part; no gradient moves it."""
    net = torch.nn.BatchNorm1d(2)
    average = Average(net, kept=0.75)
    wanted = torch.zeros(2)
    for step in range(9):
        with torch.no_grad():
            net.weight.normal_()
        net(torch.randn(3, 2))
        average.follow(net)
        part = max(0.25, 1 / (step + 1))
        wanted = (1 - part) * wanted + part * net.weight.detach()
    kept = average.of(net)
    torch.testing.assert_close(kept.weight.detach(), wanted)
    assert int(kept.num_batches_tracked) == 9
    assert not torch.equal(kept.running_mean, net.running_mean)
    assert not list(average.parameters())


def test_a_gan_refuses_odd_sides() -> None:
    with pytest.raises(ModelError, match="gan makes pictures whose sides are multiples of 4"):
        nets["gan"].build(nets["gan"].Config(), Form((9, 12), 10))
