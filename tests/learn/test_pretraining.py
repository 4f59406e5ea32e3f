"""Pre-training: its loss by brute force, its views by what they must leave, the labels that are held back."""

import math
from pathlib import Path

import pytest
import torch

from airserve.catalog import nets, pretexts
from airserve.errors import UserError
from airserve.learn import preparing, pretraining
from airserve.learn.computing import launch
from airserve.learn.losses import contrast
from airserve.learn.nets import Form
from airserve.learn.preparing import few, load_task, preprocess
from airserve.learn.pretexts import contrastive, masked
from airserve.learn.training import train
from airserve.model import ModelError
from airserve.registry import Registry

FITS = {"contrastive": ("cnn,width=4", Form((8, 8), 10)), "masked": ("transformer,width=16", Form((12,), 2, ids=(50,)))}


@pytest.mark.parametrize("name", list(pretexts))
def test_every_pretext_moves_the_net_and_refuses_what_it_cannot_read(name: str) -> None:
    net, form = FITS[name]
    kind, _, setting = net.partition(",")
    key, _, value = setting.partition("=")
    module, config = nets[kind], pretexts[name].Config()
    assert min(config.epochs, config.batch, config.rate) > 0
    torch.manual_seed(0)
    net = module.build(module.Config(**{key: int(value)}), form)
    learner = pretexts[name].build(config, net, form)
    inputs = torch.randint(1, form.ids[0], (6, *form.shape), dtype=torch.int32) if form.ids else torch.rand(6, 8, 8)
    loss = learner.objective(inputs)
    assert (loss.shape, loss.isfinite().item()) == ((), True)
    loss.backward()
    moved = [key for key, weight in net.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0]
    assert len(moved) >= len(list(net.parameters())) - 2  # all but the last layer's weight and bias
    others = {Form((5, 5), 2): "pretrain=contrastive", Form((5,), 2, ids=(9,)): "pretrain=masked"}
    others |= {Form((5,), 2): "leave pretrain out", Form((2,), 1, ids=(9, 9)): "leave pretrain out"}
    refused = [(other, instead) for other, instead in others.items() if name not in instead]
    assert len(refused) == 3
    for other, instead in refused:
        with pytest.raises(ModelError, match=rf"^{name} pre-training takes \w+, not .*; .*{instead}"):
            pretexts[name].build(config, net, other)


def test_contrast_is_its_sum_over_all_pairs() -> None:
    torch.manual_seed(0)
    vectors, temperature = torch.randn(6, 3, dtype=torch.float64), 0.3
    total = 0.0
    for k in range(6):
        like = [math.exp(torch.cosine_similarity(vectors[k], each, dim=0).item() / temperature) for each in vectors]
        total -= math.log(like[(k + 3) % 6] / (sum(like) - like[k]))
    assert contrast(vectors, temperature).item() == pytest.approx(total / 6)


def test_contrast_has_the_gradient_of_finite_differences() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: contrast(x, 0.5), [vectors])


@pytest.mark.parametrize("shape", [(40, 6, 8), (40, 6, 6, 3)])
def test_a_view_of_the_whole_is_the_picture_or_its_mirror(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LEAST": 1.0, "TURN": 0.0, "HARD": 0.0, "BRIGHT": 0.0}.items():
        monkeypatch.setattr(contrastive, name, value)
    torch.manual_seed(0)
    pictures = torch.randn(shape)
    seen = contrastive.view(pictures)
    same = (seen - pictures).abs().flatten(1).amax(1) < 1e-4
    mirrored = (seen - pictures.flip(2)).abs().flatten(1).amax(1) < 1e-4
    assert bool((same ^ mirrored).all())
    assert 5 < same.sum() < 35


def test_a_view_shows_a_part_and_nothing_else() -> None:
    """Of an even picture whose light alone changes, one value remains; views of one picture differ."""
    torch.manual_seed(0)
    seen = contrastive.view(torch.ones(20, 8, 8))
    assert (seen.flatten(1).amax(1) - seen.flatten(1).amin(1)).max() < 1e-5
    assert len(seen[:, 0, 0].unique()) == 20


def test_words_are_hidden_as_often_as_the_paper_says() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 1000, (400, 100), dtype=torch.int32)
    given, wanted = masked.hide(ids, 1000)
    asked = wanted != -100
    assert torch.equal(given[~asked], ids[~asked])
    assert torch.equal(wanted[asked], ids[asked].long())
    assert not asked[ids < 2].any()
    assert given.dtype == ids.dtype
    assert given[asked].min() > 0
    assert given.max() < 1000
    hidden, kept = (given[asked] == 1).float().mean(), (given == ids)[asked].float().mean()
    found = [asked[ids > 1].float().mean().item(), hidden.item(), kept.item()]
    assert found == pytest.approx([0.15, 0.8, 0.1], abs=0.02)


def test_hidden_words_are_learnt_from_their_neighbours() -> None:
    """Words follow each other round a circle of ten, so that a hidden one can be told from those beside it."""
    torch.manual_seed(0)
    form = Form((9,), 2, ids=(12,))
    net = nets["transformer"].build(nets["transformer"].Config(width=32, heads=2, layers=1, dropout=1e-6), form)
    answer, words = net.answer.weight.clone(), net.words.weight.clone()
    learner = pretexts["masked"].build(masked.Config(), net, form)
    ids = ((torch.randint(0, 10, (96, 1)) + torch.arange(9)) % 10 + 2).int()
    ids[torch.arange(9) >= torch.randint(4, 10, (96, 1))] = 0
    config = masked.Config(epochs=8, batch=16, rate=3e-2)
    pretraining.fit(launch("32-true"), learner, ids, config, 0, False, "masked")
    with torch.no_grad():
        losses = [learner.eval().objective(ids).item() for _ in range(5)]
    assert sum(losses) / 5 < 0.75 * math.log(10)  # what is known of a word without its neighbours
    assert torch.equal(net.answer.weight, answer)
    assert not torch.equal(net.words.weight, words)


def test_few_labels_are_a_share_of_each_class() -> None:
    whole = preprocess(load_task("digits"))
    part = few(whole, 0.1, seed=0)
    for split, cut in ((whole.train, part.train), (whole.validation, part.validation)):
        before, after = (torch.bincount(each[1], minlength=10) for each in (split, cut))
        assert after.tolist() == [max(round(0.1 * many), 1) for many in before.tolist()]
        rows = {tuple(row.flatten().tolist()) for row in split[0]}
        assert all(tuple(row.flatten().tolist()) in rows for row in cut[0])
    assert part.test is whole.test
    assert part.passes == max(round(whole.passes * math.sqrt(10)), 1)
    assert torch.equal(few(whole, 0.1, seed=0).train[1], part.train[1])
    assert not torch.equal(few(whole, 0.1, seed=1).train[0], part.train[0])


def test_numbers_have_no_classes_to_draw_from() -> None:
    chosen = preparing._draw(torch.rand(50, 1), 1, 0.2, torch.Generator().manual_seed(0))
    assert (len(chosen), len(set(chosen.tolist()))) == (10, 10)


def test_weights_are_found_once_and_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that takes kept weights ends where one that finds them ends, to the bit; so with other labels."""
    one, other = Registry(tmp_path / "one"), Registry(tmp_path / "other")
    net = "mlp,epochs=1,pretrain=contrastive"
    first = train(f"{net},labels=0.5", "digits", registry=one, progress=False)
    assert first.lineage["settings"]["pretrain"] == "contrastive"
    found = train(f"{net},labels=0.2", "digits", registry=other, progress=False)
    monkeypatch.setattr(pretraining, "fit", lambda *_: pytest.fail("it pre-trains again"))
    kept = train(f"{net},labels=0.2", "digits", registry=one, progress=False)
    assert kept.digest == found.digest != first.digest
    assert kept.lineage["pretrained"] == first.lineage["pretrained"]  # the same weights, paid once
    assert found.lineage["pretrained"]["weights"] == first.lineage["pretrained"]["weights"]
    assert all(each.lineage["pretrained"]["cpu_s"] > 0 for each in (first, found))


def test_what_cannot_be_pretrained_is_refused(registry: Registry) -> None:
    with pytest.raises(UserError, match="pretrain=nothing of mlp is none of none, contrastive"):
        train("mlp,pretrain=nothing", "digits", registry=registry, progress=False)
    with pytest.raises(UserError, match="contrastive pre-training takes pictures"):
        pretexts["contrastive"].build(contrastive.Config(), torch.nn.Linear(2, 2), Form((4,), 2))
    with pytest.raises(UserError, match="needs a net with a linear last layer; Sequential has none"):
        pretexts["contrastive"].build(contrastive.Config(), torch.nn.Sequential(), Form((8, 8), 2))
    with pytest.raises(UserError, match="needs a net with states of words, transformer; Sequential has none"):
        pretexts["masked"].build(masked.Config(), torch.nn.Sequential(), Form((8,), 2, ids=(9,)))
