"""Every net on every task that makes sense, trained and scored on the test split: python bench/scores.py [--only NET]

What the registry knows is not trained again, so an interrupted run goes on. The table is written to docs/scores.md;
a task whose data is absent says so in its row. Rows are trained by as many processes as there are cores, one thread
each; CPU-seconds are of training alone.
"""

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import answering
import numpy as np

from airserve.catalog import tasks
from airserve.errors import UserError
from airserve.learn.metrics import Metric
from airserve.learn.preparing import load_task
from airserve.learn.recipe import digest, read_net
from airserve.learn.tasks import TaskError
from airserve.learn.training import train
from airserve.linux import die_with_parent
from airserve.model import Array, Engine, Model
from airserve.registry import Registry

PAGE = Path(__file__).parent.parent / "docs" / "scores.md"
NO_LIMIT = float("inf")


@dataclass(frozen=True)
class Row:
    net: str
    task: str
    seeds: int = 1
    reach: float | None = None  # the figure to reach on the mean over seeds
    most_cpu_s: float = NO_LIMIT
    of: str = ""  # the score of which it is the figure, where that is not the task's metric and more is better


@dataclass(frozen=True)
class Scored:
    """What the page says of a row, and what it took; `pretrained` are weights that other rows may have taken too."""

    line: str
    further: Sequence[str] = ()
    kept: bool = True
    cpu_s: float = 0.0
    pretrained: Mapping[str, float] = field(default_factory=dict)


ROWS = [
    Row("mlp,epochs=5,batch=512", "fashion-mnist", 3, 0.860, 5.0),
    Row("cnn", "fashion-mnist", 1, 0.91),
    Row("resnet8", "fashion-mnist", 1),
    Row("resnet8,epochs=5", "fashion-mnist", 1, 0.915),
    Row("resnet20", "fashion-mnist", 1),
    Row("cnn", "digits", 3),
    Row("lstm", "tweets", 1),
    Row("gru", "tweets", 1),
    Row("transformer", "tweets", 1),
    Row("fasttext,epochs=15,rate=1e-2,decay=1e-2", "spam", 1),
    Row("gru,epochs=6", "spam", 1),
    Row("lstm,epochs=6", "spam", 1),
    Row("mlp,epochs=8,rate=1e-3,decay=1", "adult", 3),
    Row("mlp-plr", "adult", 3, 0.85),
    Row("starspace", "chatterbot", 3),
    Row("factorisation", "movielens", 3, 0.885),
    Row("collaborative", "movielens", 3, 0.885),
    Row("gpt,optimizer=muon", "brown", 1, 1.8699, 300.0),
    Row("vae", "fashion-generation", 1),
    Row("gan", "fashion-generation", 1, 8, of="classes_seen"),
    Row("policy", "cartpole", 3, 475),
    Row("ds-cnn", "speech-words", 1, 0.97),
    Row("quartznet", "asterisk", 1),
    Row("seq2seq,optimizer=muon", "libreoffice", 1),
    Row("seq2seq-transformer,optimizer=muon", "libreoffice", 1),
    Row("seq2seq,optimizer=muon,epochs=2,batch=32", "bible", 1),
    Row("detector", "digit-scenes", 1, 0.8),
]


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--only", default="", help="rows whose net or task has this in its name; the page stays")
    asked.add_argument("--page", type=Path, default=PAGE)
    asked.add_argument("--known", action="store_true", help="train nothing: a row that was not trained yet says so")
    asked.add_argument("--processes", type=int, default=os.cpu_count(), help="that train rows side by side")
    given = asked.parse_args()
    rows = [row for row in ROWS if given.only in f"{row.net} {row.task}"]
    told, answered = side_by_side(rows, given.processes, given.known, given.page, given.only in "answering")
    if not given.only:
        pretrained = {weights: cpu_s for each in told for weights, cpu_s in each.pretrained.items()}  # once, of several
        cpu_s = sum(each.cpu_s for each in told) + sum(pretrained.values())
        further = [text for each in told for text in each.further]
        given.page.write_text(
            "\n".join([*head(cpu_s, given.known), *(each.line for each in told), *further, *answered, ""])
        )
    return 0 if all(each.kept for each in told) else 1


def begin(parent: int) -> None:
    """What a process that scores does first. Data are read once: a row asks several times, and rows share theirs."""
    die_with_parent(parent)
    for name in tasks:
        if hasattr(tasks[name], "load"):
            tasks[name].load = cache(tasks[name].load)


def side_by_side(
    rows: list[Row], processes: int, known: bool, page: Path, answering_too: bool
) -> tuple[list[Scored], list[str]]:
    """Rows, each scored by one of several processes, in turn, and what is answered without training.

    A process that is killed leaves its rows to this one.
    """
    found: dict[Row, Scored] = {}
    answered: list[str] = []
    alone = get_context("spawn")
    with ProcessPoolExecutor(processes, alone, initializer=begin, initargs=(os.getpid(),)) as executor:
        waiting = {executor.submit(score, row, known, page): row for row in reversed(rows)}  # the long ones first
        last = executor.submit(answers) if answering_too else None
        try:
            for done in as_completed(waiting):
                found[waiting[done]] = done.result()
                print(done.result().line, flush=True)
            answered = last.result() if last else []
        except BrokenProcessPool:  # as where memory is short
            print("a process was killed; its rows and those that waited are scored here, one by one", flush=True)
    if answering_too and not answered:
        answered = answers()
    return [found.get(row) or score(row, known, page) for row in rows], answered


def score(row: Row, known: bool, page: Path) -> Scored:
    """Train all seeds of a row that are not known, and say what came of it."""
    registry = Registry()
    try:
        models = [trained(row, seed, registry, known) for seed in range(row.seeds)]
    except UserError as error:
        kept = row.reach is None or isinstance(error, TaskError)  # without its data no figure is asked for
        return Scored(f"| {row.net} | {row.task} | not run: {error} | | | | |", kept=kept)
    taken = [model.lineage["pretrained"] for model in models if "pretrained" in model.lineage]
    return Scored(
        line(row, models),
        further(row, models[0], registry, page),
        reached(row, models) is not False,
        sum(model.lineage["cpu_s"] for model in models),
        {each["weights"]: each["cpu_s"] for each in taken},
    )


def trained(row: Row, seed: int, registry: Registry, known: bool) -> Model:
    """The Model of a row and a seed; with `known` only one that the registry has."""
    if not known:
        return train(row.net, row.task, seed=seed, registry=registry, progress=False)
    name, config, options = read_net(row.net)
    found = registry.trained(digest(name, config, options, row.task, load_task(row.task).fingerprint, seed))
    if found is None:
        raise UserError(f"seed {seed} was not trained yet.")
    return found


def line(row: Row, models: list[Model]) -> str:
    """A row of the table: scores of all seeds, what was to be reached and to be beaten, and what it took."""
    metric = tasks[row.task].load().metric
    scores = [model.scores[metric.name] for model in models]
    facts, mean = models[0].lineage, float(np.mean(scores))
    verdict = {True: "reached", False: "not reached", None: ""}[reached(row, models)]
    aim = "" if row.reach is None else f"{'≤' if metric.less_is_better and not row.of else '≥'} {row.reach:g}"
    aim += f" {row.of.replace('_', ' ')}" if row.of else ""
    aim += f" in ≤ {row.most_cpu_s:g} CPU-s" if row.most_cpu_s < NO_LIMIT else ""
    beaten = "beaten" if metric.beats(mean, facts["baseline"]["score"]) else "**not beaten**"
    beat = f"{facts['baseline']['name']} {facts['baseline']['score']:.4f}: {beaten}"
    return (
        f"| {row.net} | {row.task} | {metric.name} {', '.join(f'{score:.4f}' for score in scores)} "
        f"| {f'{aim}: {verdict}' if aim else ''} | {beat} "
        f"| {facts['parameters']:,} | {', '.join(format(whole_s(model), '.3g') for model in models)} |"
    )


def reached(row: Row, models: list[Model]) -> bool | None:
    """Whether the figure is reached by the mean of the seeds and the dearest of them; None where there is none."""
    if row.reach is None:
        return None
    metric = Metric(row.of) if row.of else tasks[row.task].load().metric
    mean = float(np.mean([model.scores[metric.name] for model in models]))
    return metric.beats(mean, row.reach) and max(map(whole_s, models)) <= row.most_cpu_s


def whole_s(model: Model) -> float:
    """CPU-seconds of a Model's training and of the pre-training that its weights began with."""
    return float(model.lineage["cpu_s"] + model.lineage.get("pretrained", {}).get("cpu_s", 0.0))


def sheet(model: Model, registry: Registry, page: Path) -> list[str]:
    """Pictures that a Model made, beside the page; nothing of one that made none."""
    if "sheet" not in model.lineage:
        return []
    file = page.with_name(f"{model.name.rpartition('-')[0]}.png")
    file.write_bytes((registry.home / model.lineage["sheet"]).read_bytes())
    return ["", f"![128 pictures that {model.name} made]({file.name})"]


def further(row: Row, model: Model, registry: Registry, page: Path) -> list[str]:
    """What one number does not say: recall of each class, groups of people, ten best films."""
    module, engine = tasks[row.task], Engine(model.path)
    data = module.load()
    if data.answer != "row":
        others = [f"{name} {score:.4f}" for name, score in model.scores.items() if name != data.metric.name]
        said = ["", f"{row.net} on {row.task}: {', '.join(others)}."] if others else []
        return [*said, *sheet(model, registry, page)]
    if hasattr(module, "recall_at_ten"):
        users, films = data.ids
        pairs = np.stack(np.meshgrid(np.arange(films), np.arange(users)), axis=-1)[..., ::-1].astype(np.int32)
        scores = np.concatenate([engine.run([np.ascontiguousarray(each)])[0].T for each in pairs])
        return ["", f"{row.net} on {row.task}: recall among the ten best {module.recall_at_ten(data, scores):.4f}."]
    if hasattr(module, "groups"):
        inputs, labels = data.test.inputs, data.test.labels
        found = np.concatenate([engine.run([inputs[k : k + 500]])[0].argmax(1) for k in range(0, len(inputs), 500)])
        known = module.reference(data)
        beside = f"For reference, {known.name} on the same split of {row.task}: {known.score:.4f}."
        return [*fairness(row, found, labels, module.groups(data)), "", beside]
    each = ", ".join(f"{name} {share:.3f}" for name, share in model.lineage["recall"].items())
    return ["", f"{row.net} on {row.task}, recall: {each}."]


def answers() -> list[str]:
    """What is found without training: questions and their answers."""
    lines, _ = answering.table(Registry())
    print(*lines, sep="\n")
    said = "Question answering as retrieval, with published weights and no training (`python bench/answering.py`):"
    return ["", said, "", *answering.HEAD, *lines]


def fairness(row: Row, found: Array, labels: Array, groups: dict[str, Array]) -> list[str]:
    """fairlearn's MetricFrame: accuracy, recall and how often the answer is yes, by group."""
    from fairlearn.metrics import MetricFrame, count, selection_rate
    from sklearn.metrics import accuracy_score, recall_score

    said = {"people": count, "accuracy": accuracy_score, "recall": recall_score, "said >50K": selection_rate}
    lines = ["", f"{row.net} on {row.task}, by group (seed 0; the rates are facts of this Model, not a verdict):", ""]
    lines += ["| group | people | accuracy | recall of >50K | said >50K |", "|---|---|---|---|---|"]
    for group, members in groups.items():
        frame = MetricFrame(metrics=said, y_true=labels, y_pred=found, sensitive_features=members)
        for name, values in frame.by_group.iterrows():
            people, *rates = values
            lines.append(f"| {group}: {name} | {people:.0f} | {' | '.join(f'{rate:.3f}' for rate in rates)} |")
    return lines


def head(cpu_s: float, known: bool) -> list[str]:
    names = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    machine = names[0].partition(": ")[2] if names else platform.processor()
    how = "Of Models that were trained before, row by row (`--known`), written" if known else "Made by `make scores`"
    return [
        "# Scores",
        "",
        f"{how} on {datetime.date.today()}, {os.cpu_count()} virtual cores of {machine}, "
        f"{cpu_s:,.0f} CPU-seconds of training in all, one thread each; other work beside it costs CPU-seconds too. "
        "Seeds 0, 1, 2 where three scores stand, else seed 0. The test split is touched once, after training.",
        "",
        "| net | task | score on the test split | to reach | to beat, on the same split | parameters | CPU-s |",
        "|---|---|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    sys.exit(main())
