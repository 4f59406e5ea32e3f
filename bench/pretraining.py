"""What pre-training without labels gains where labels are few: python bench/pretraining.py [--only WORD] [--json]

For each row the same net is trained with 1 % and with 10 % of the labels, of the train and the validation split, from
weights drawn and from weights that a pretext found in the train split's inputs. All scores are on the whole test split.
What the registry knows is not trained again. One thread, seed 0.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass

from airserve.learn.training import train
from airserve.registry import Registry

SHARES = (0.01, 0.1)


@dataclass(frozen=True)
class Row:
    net: str  # with settings
    task: str
    pretext: str


ROWS = [
    Row("resnet8,epochs=4", "fashion-mnist", "contrastive"),
    Row("transformer", "tweets", "masked"),
]


@dataclass(frozen=True)
class Found:
    net: str
    task: str
    pretext: str
    share: float
    labels: int  # of the train split
    metric: str
    without: float
    with_: float
    cpu_s: tuple[float, float]  # of training alone: without, with
    before_s: float  # CPU-seconds of pre-training, once for all shares; nan of a Model from before they were told apart


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--only", default="", help="rows whose net, task or pretext has this in its name")
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    found = [
        compare(row, share) for row in ROWS if given.only in f"{row.net} {row.task} {row.pretext}" for share in SHARES
    ]
    if given.json:
        print(json.dumps([asdict(each) for each in found], indent=1))
        return 0
    print("| net | task | pretext | labels | without | with | gain | CPU-s without, with | pre-training |")
    print("|---|---|---|---|---|---|---|---|---|")
    for each in found:
        print(
            f"| {each.net} | {each.task} | {each.pretext} | {each.share:.0%} ({each.labels:,}) | {each.without:.4f} "
            f"| {each.with_:.4f} | {each.with_ - each.without:+.4f} | {each.cpu_s[0]:.3g}, {each.cpu_s[1]:.3g} "
            f"| {each.before_s:.3g} |"
        )
    return 0


def compare(row: Row, share: float) -> Found:
    """Both trainings with a share of the labels."""
    net, registry = f"{row.net},labels={share:g}", Registry()
    plain, better = (train(each, row.task, registry=registry) for each in (net, f"{net},pretrain={row.pretext}"))
    metric = next(iter(plain.scores))
    before = better.lineage.get("pretrained", {})
    labels = round(share * plain.lineage["rows"]["train"])
    return Found(
        row.net, row.task, row.pretext, share, labels, metric, plain.scores[metric], better.scores[metric],
        (plain.lineage["cpu_s"], better.lineage["cpu_s"]), before.get("cpu_s", float("nan")),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
