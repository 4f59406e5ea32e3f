"""Profiles: bytes are the wire's, seconds are the engine's, scores are counted by hand, and all of it is remembered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from PIL import Image

from airserve import wire
from airserve.contract import from_plain, to_plain
from airserve.errors import UserError
from airserve.model import Engine, Model, ModelError, Signature, Tensor
from airserve.place import measuring, profiling
from airserve.place.cutting import Scale, cuts, split
from airserve.place.description import Factory, read
from airserve.place.measuring import VariantProfile, halves, measure, timed, wholes
from airserve.place.profiling import Lazy, Profile, cut_score, profile, resolve
from airserve.registry import Registry
from airserve.samples import Samples, load_samples

DESCRIPTION = """
network:
  cells: [{{name: hall}}]
  slices: [{{name: all}}]
  sites:
    - {{name: sensor, kind: device, speed: 0.01}}
    - {{name: mast, kind: edge, cores: 2, delay_ms: 1}}
services:
  - {{name: look, model: {model}, device: sensor, devices: 2, rate_hz: 5, slice: all, promise: {{latency_ms: 50}}}}
"""


def described(folder: Path, model: str) -> Factory:
    path = folder / "factory.yaml"
    path.write_text(dedent(DESCRIPTION).format(model=model))
    return read(path)


@pytest.fixture(scope="module")
def known(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return profile(described(tmp_path_factory.mktemp("d"), "digits"), registry=registry, progress=False)


def test_every_way_is_there(known: Profile, graphs: dict[str, Path]) -> None:
    fp32, int8 = known.of("digits").variants
    chosen = [cut.name for cut in cuts(graphs["fp32"]) if not cut.shadowed]
    assert [(w.cut, w.encoding) for w in fp32.ways] == [
        ("none", ""),
        ("input", "raw"),
        *((name, encoding) for name in chosen for encoding in ("raw", "int8")),
    ]
    assert {w.encoding for w in int8.ways} == {"", "raw"}  # its cuts are uint8 as they are
    for way in (*fp32.ways, *int8.ways):
        assert (len(way.head_s) > 0) == (way.cut != "input")
        assert (len(way.tail_s) > 0) == (way.cut != "none")
        # Runs of microseconds may have two speeds, and their quickest tenth then ends above the middle of what is kept.
        assert all(
            (x > 0).all() and x.max() <= 2 * measuring.DISTURBED * np.median(x)
            for x in (way.head_s, way.tail_s)
            if len(x)
        )


def test_bytes_are_those_on_the_wire(
    known: Profile, model: Model, graphs: dict[str, Path], pictures: np.ndarray
) -> None:
    held = load_samples(model.samples_path).held().inputs  # type: ignore[arg-type]
    sent = known.of("digits").variants[0].way("input").bytes_up
    tensor = Tensor("image", "uint8", (-1, 8, 8))
    whole = [len(wire.infer_request("digits", [(tensor, row[None])], host="127.2.0.1:7801")) for row in held]
    assert sent.tolist() == whole
    cut = next(cut for cut in cuts(graphs["fp32"]) if cut.tensor == "/block/act/Relu_output_0")
    way = known.of("digits").variants[0].way(cut.name, "int8")
    head = Engine(halves(way, model)[0])
    for nbytes, packed, row in zip(way.bytes_up, way.packed_up, held, strict=False):
        out = [(head.signature.outputs[0], head.run([row[None]])[0])]
        assert nbytes == len(wire.infer_request("digits", out, host="127.2.0.1:7801"))
        assert packed == len(wire.infer_request("digits", out, host="127.2.0.1:7801", compress=True))
    answer = Engine(graphs["fp32"]).run([held[:1]])[0]
    down = wire.infer_response(
        "digits", "1", [(Tensor("logits", "float32", (-1, 10)), answer)],
        server_timing='queue;dur=0.250;desc="mast", compute;dur=9.876;desc="mast"',
    )  # fmt: skip
    assert known.of("digits").variants[0].bytes_down[0] == len(down)


def test_scores_by_hand(known: Profile, model: Model, registry: Registry, graphs: dict[str, Path]) -> None:
    samples = load_samples(model.samples_path)  # type: ignore[arg-type]
    held = samples.held()
    fp32, int8 = known.of("digits").variants
    answers = np.array([Engine(graphs["int8"]).run([row[None]])[0].argmax() for row in held.inputs])
    assert (fp32.metric, fp32.score, fp32.scored) == ("accuracy", 1.0, len(held.inputs))
    assert int8.score == pytest.approx((answers == held.labels).mean())
    assert int8.before == 1.0
    way = next(w for w in fp32.ways if w.encoding == "int8")
    head, tail = (Engine(half) for half in halves(way, model))
    ours = np.array([tail.run(head.run([row[None]]))[0].argmax() for row in held.inputs])
    assert cut_score(way, model, model, Lazy(model), registry) == pytest.approx((ours == held.labels).mean())


@pytest.mark.parametrize("by_channel", [True, False])
def test_scales_come_from_calibration_rows_alone(
    graphs: dict[str, Path], model: Model, by_channel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "CHANNEL_VALUES", 20 * 8 * 8 + (not by_channel))
    samples = load_samples(model.samples_path)  # type: ignore[arg-type]
    cut = next(cut for cut in cuts(graphs["fp32"]) if cut.tensor == "/block/act/Relu_output_0")
    way = measure(model, model, samples).way(cut.name, "int8")
    head = Engine(split(graphs["fp32"], cut)[0])
    seen = np.concatenate([head.run([samples.inputs[i : i + 1]])[0] for i in range(samples.calibration)])
    axes = (0, 2, 3) if by_channel else None
    wanted = Scale.between(seen.min(axis=axes), seen.max(axis=axes))
    assert way.scale is not None
    np.testing.assert_allclose(way.scale.step, wanted.step, rtol=1e-6)
    np.testing.assert_array_equal(way.scale.zero, wanted.zero)


def test_a_repeat_is_remembered(
    known: Profile, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "measure", None)  # calling it would fail
    again = profile(described(tmp_path, "digits"), registry=registry, progress=False)
    assert again.plain() == known.plain()


def test_a_profile_survives_json(known: Profile) -> None:
    for variant in known.of("digits").variants:
        back = from_plain(VariantProfile, to_plain(variant))
        assert to_plain(back) == to_plain(variant)
        assert isinstance(back.ways[0].head_s, np.ndarray)


def test_without_samples_no_int8_and_no_score(registry: Registry, tmp_path: Path) -> None:
    (only,) = profile(described(tmp_path, "blind"), registry=registry, progress=False).of("blind").variants
    assert (only.metric, only.score, only.scored) == ("", None, 0)
    assert {way.encoding for way in only.ways} == {"", "raw"}
    assert not any(len(way.packed_up) for way in only.ways)  # zeros would compress to nothing


def test_pictures_are_sent_as_they_are(graphs: dict[str, Path], tmp_path: Path) -> None:
    import io

    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["f"], ["logits"], axes=[1, 2], keepdims=0),
        ],
        "mean",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, tmp_path / "mean.onnx")
    encoded = []
    for k in range(6):
        data = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), 40 * k, np.uint8)).save(data, "JPEG")
        encoded.append(data.getvalue())
    registry = Registry(tmp_path / "home")
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded])
    registry.register("mean", tmp_path / "mean.onnx", samples=Samples(pixels, None, 2, tuple(encoded), "image/jpeg"))
    one = profile(described(tmp_path, "mean"), registry=registry, progress=False).of("mean")
    assert one.media == "image/jpeg"
    assert (one.decode_s > 0).all()
    way = one.variants[0].way("input", "jpeg")
    lengths = way.bytes_up - np.array([len(data) for data in encoded[2:]])
    assert len(set(lengths)) == 1  # the same headers about every picture
    assert (one.variants[0].metric, one.variants[0].score) == ("agreement", 1.0)


def test_timing_leaves_out_faults_of_the_moment() -> None:
    calls = iter([0.0] * 2 + [0.0005] * 9 + [0.02] + [0.0005] * 200)

    def run(_: object) -> list[np.ndarray]:
        ends = time.thread_time() + next(calls)
        while time.thread_time() < ends:
            pass
        return []

    seconds = timed(run, [])  # type: ignore[arg-type]
    assert len(seconds) >= 11
    assert seconds.max() < 0.005
    assert np.median(seconds) == pytest.approx(0.0005, rel=0.3)


def test_ratios_outlast_a_noisy_machine(graphs: dict[str, Path], pictures: np.ndarray) -> None:
    """Twice the work is twice the time, though the machine slows down meanwhile."""
    slow = [1.0]

    def run(work: float) -> Callable[[object], list[np.ndarray]]:
        def spin(_: object) -> list[np.ndarray]:
            slow[0] *= 1.02
            ends = time.thread_time() + work * slow[0]
            while time.thread_time() < ends:
                pass
            return []

        return spin

    seconds, fp32_s, _ = wholes(run(4e-4), [], run(2e-4), 0.5)  # type: ignore[arg-type]
    assert fp32_s == 0.5
    assert np.median(seconds) == pytest.approx(1, rel=0.1)


def test_rounds_that_differ_are_noted(known: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio is that of the middle round, whichever was the quietest."""
    rounds = iter([[np.array([one]), np.array([other])] for one, other in ((6.0, 2.0), (3.0, 2.0), (8.0, 1.0))])
    monkeypatch.setattr(measuring, "timed_in_turn", lambda *_: next(rounds))
    assert wholes(Engine.run, [], Engine.run, 0.5) == (np.array([1.5]), 0.5, 8 / 1.5)  # type: ignore[arg-type]
    one = known.of("digits")
    fp32, int8 = one.variants
    calm, busy = replace(fp32, rounds_differ=1.5), replace(int8, rounds_differ=8 / 1.5)
    rows = Profile((replace(one, variants=(calm, busy)),)).plain()["ways"]
    notes = {(row["variant"], row["cut"]): row["note"] for row in rows if row["note"]}
    assert notes == {("int8", "none"): "this machine was busy: two rounds differ 5.3 times; profile again with --fresh"}


def test_a_variant_takes_as_many_times_fp32s_seconds_as_is_said(known: Profile) -> None:
    fp32, int8 = known.of("digits").variants
    medians = [float(np.median(variant.way("none").head_s)) for variant in (fp32, int8)]
    assert (fp32.against, int8.against) == (1, pytest.approx(medians[1] / medians[0]))
    assert fp32.fp32_s == int8.fp32_s == pytest.approx(medians[0])
    assert np.median(int8.way("input", "raw").tail_s) == pytest.approx(medians[1])


def test_variants_stand_on_the_fp32_that_is_kept(registry: Registry, tmp_path: Path) -> None:
    """Where fp32 was measured again and its variants were not, they are."""
    factory = described(tmp_path, "digits")
    model = registry.get("digits")
    key = f"profile/{profiling._content(model, model)}"
    kept = registry.kept(key)
    registry.keep(key, {**kept, "fp32_s": 2 * kept["fp32_s"]})
    try:
        fp32, int8 = profile(factory, registry=registry, progress=False).of("digits").variants
        assert fp32.fp32_s == int8.fp32_s == 2 * kept["fp32_s"]
    finally:
        registry.keep(key, kept)


def test_scores_have_four_digits(known: Profile) -> None:
    one = known.of("digits")
    (row, *_) = Profile((replace(one, variants=(replace(one.variants[0], score=35 / 36),)),)).plain()["ways"]
    assert row["score"] == 0.9722


def test_sleep_is_not_compute() -> None:
    def run(_: object) -> list[np.ndarray]:
        time.sleep(0.002)  # as when another process has the processor
        return []

    assert timed(run, []).max() < 0.001  # type: ignore[arg-type]


def test_models_that_are_not_there(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model named 'digit'"):
        profile(described(tmp_path, "digit"), registry=registry, progress=False)
    with pytest.raises(ModelError, match=r"nowhere\.onnx does not exist"):
        profile(described(tmp_path, "nowhere.onnx"), registry=registry, progress=False)


def test_a_model_that_cannot_be_served_is_one_sentence(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = Signature(model.signature.inputs, (Tensor("z", "seq(map(int64,tensor(float)))", ()),))
    monkeypatch.setattr(Registry, "get", lambda *_: replace(model, signature=zipped))
    with pytest.raises(
        ModelError, match=r"^digits@1/fp32: z is seq\(.*which cannot be served; export it again with opt"
    ):
        resolve("digits", Registry(model.path.parent.parent))


def test_a_path_is_registered(graphs: dict[str, Path], tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    found = profile(described(tmp_path, str(graphs["fp32"])), registry=registry, progress=False)
    assert found.models[0].variants[0].reference == "fp32@1/fp32"


def test_measuring_says_how_far_it_is(model: Model) -> None:
    told: list[tuple[int, int, str]] = []
    samples = load_samples(model.samples_path)  # type: ignore[arg-type]
    measure(model, model, samples, lambda *step: told.append(step))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert all(done <= total for done, total, _ in told)
