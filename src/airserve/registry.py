"""The registry: models with versions, variants, aliases, scores and lineage; SQLite and content-addressed files."""

import hashlib
import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, final
from urllib.parse import quote

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.pool import NullPool

from airserve.contract import from_plain, to_plain
from airserve.errors import UserError
from airserve.model import Engine, Model, ModelError, Signature, unserved
from airserve.samples import Samples, load_samples, save_samples
from airserve.tensors import DATATYPE

FILE = "registry.db"
DAMAGED = "not a database", "malformed"  # in SQLite's words
BUSY_MS = 30_000  # how long a process waits for another one's write
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NOTHING: Mapping[str, Any] = MappingProxyType({})

tables = sql.MetaData()
MODELS = sql.Table(
    "models",
    tables,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("name", sql.String, nullable=False),
    sql.Column("version", sql.Integer, nullable=False),
    sql.Column("variant", sql.String, nullable=False),
    sql.Column("digest", sql.String, nullable=False),
    sql.Column("samples", sql.String),  # SHA-256 of the samples file
    sql.Column("recipe", sql.String, index=True),
    sql.Column("signature", sql.JSON, nullable=False),
    sql.Column("scores", sql.JSON, nullable=False),
    sql.Column("lineage", sql.JSON, nullable=False),
    sql.UniqueConstraint("name", "version", "variant"),
)
ALIASES = sql.Table(
    "aliases",
    tables,
    sql.Column("name", sql.String, primary_key=True),
    sql.Column("alias", sql.String, primary_key=True),
    sql.Column("version", sql.Integer, nullable=False),
)
FACTS = sql.Table(
    "facts",
    tables,
    sql.Column("key", sql.String, primary_key=True),
    sql.Column("value", sql.JSON, nullable=False),
)


def home() -> Path:
    """The registry's folder: the environment's AIRSERVE_HOME, else `.airserve` here."""
    return Path(os.environ.get("AIRSERVE_HOME") or ".airserve").absolute()


@final
class NotRegistered(UserError, LookupError):
    """A model, version, variant or alias that the registry does not have, with what is near and what to do next."""


@final
class Registry:
    """Models and measured facts in one folder, which several processes may use at once.

    The folder is the one given, else `home()`. It can be moved as a whole. One that may not be written is read. Raises
    `ModelError` where it can be neither read nor made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.home = home() if folder is None else Path(folder).absolute()
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(
                f"the registry's folder {self.home} cannot be made: {error.strerror}; set AIRSERVE_HOME."
            ) from None
        # No pool: a connection costs 0.1 ms, and none is left open across a fork.
        self._database = sql.create_engine("sqlite://", creator=partial(_open, self.home), poolclass=NullPool)
        self._writer = self._database.execution_options(writes=True)
        event.listen(self._database, "begin", _begin)
        if not self._made():
            with self._writing() as connection:
                tables.create_all(connection)

    def _made(self) -> bool:
        """Whether all tables are there: to make them takes the write lock, or cannot be done."""
        if not (self.home / FILE).is_file():
            return False
        with self._reading() as connection:
            there = connection.scalars(sql.text("SELECT name FROM sqlite_master WHERE type = 'table'"))
            return set(tables.tables) <= set(there)

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        """A transaction that reads. Raises `ModelError` where the file cannot be read or is none."""
        try:
            with self._database.connect() as connection:
                yield connection
        except sql.exc.DatabaseError as error:
            damaged = any(words in str(error.orig) for words in DAMAGED)
            raise ModelError(
                f"the registry {self.home / FILE} cannot be read: {error.orig}; "
                f"{'restore it from a copy' if damaged else 'try again'}, or set AIRSERVE_HOME to another folder."
            ) from None

    @contextmanager
    def _writing(self) -> Iterator[sql.Connection]:
        """A transaction that holds the write lock. Raises `ModelError` where the file cannot be written or is none."""
        try:
            with self._writer.connect() as connection:
                yield connection
                connection.commit()
        except (OSError, sql.exc.DatabaseError) as error:
            raise _unwritable(self.home, error) from None

    def register(
        self,
        name: str,
        onnx: bytes | Path,
        *,
        variant: str = "fp32",
        version: int | None = None,
        samples: Samples | Path | None = None,
        scores: Mapping[str, float] = NOTHING,
        lineage: Mapping[str, Any] = NOTHING,
        alias: str | None = None,
    ) -> Model:
        """A graph and what is known of it, as a version: the next one, or `version` for a variant of an earlier Model.

        All or nothing. The same graph, samples and lineage under the same name and variant are the same version, which
        gets the scores.
        A variant made again replaces the one of its version; an fp32 graph of a version never changes.
        Raises `ModelError` when the graph is not ONNX or holds what cannot be served, the samples are none, a name is
        not usable or the disk is full.
        """
        for word in (name, variant, *([alias] if alias is not None else [])):
            if not NAME.fullmatch(word):
                raise ModelError(f"{word!r} is not a usable name; use letters, digits, dots, hyphens and underscores.")
        _check_alias(alias)
        signature = Engine(onnx).signature
        check_served(name, signature)
        graph = onnx if isinstance(onnx, bytes) else onnx.read_bytes()
        held = _samples_bytes(samples)
        plain = json.loads(json.dumps(to_plain(dict(lineage))))
        row: dict[str, Any] = {
            "name": name,
            "variant": variant,
            "digest": hashlib.sha256(graph).hexdigest(),
            "samples": None if held is None else hashlib.sha256(held).hexdigest(),
            "recipe": plain.get("recipe"),
            "signature": to_plain(signature),
            "scores": {metric: float(value) for metric, value in scores.items()},
            "lineage": plain,
        }
        made: list[Path] = []
        with self._writing() as connection:
            try:
                row["version"] = self._place(connection, row, version)
                _write(self.home / "models" / f"{row['digest']}.onnx", graph, made)
                if held is not None:
                    _write(self.home / "samples" / f"{row['samples']}.npz", held, made)
                if alias is not None:
                    _point(connection, name, alias, row["version"])
                connection.commit()
            except BaseException:
                for path in made:  # while the lock is held: nobody else can count on them yet
                    path.unlink(missing_ok=True)
                raise
        return self.get(f"{name}@{row['version']}/{variant}")

    def _place(self, connection: sql.Connection, row: dict[str, Any], version: int | None) -> int:
        """Insert the row, or find or replace the one that stands for it; the version it has."""
        c = MODELS.c
        ours = sql.and_(c.name == row["name"], c.variant == row["variant"])
        same = sql.and_(ours, c.digest == row["digest"], c.samples.is_not_distinct_from(row["samples"]))
        if version is None:
            for known in connection.execute(sql.select(c.version, c.lineage).where(same).order_by(c.version.desc())):
                if known.lineage == row["lineage"]:
                    if row["scores"]:  # found anew, perhaps otherwise than then
                        again = MODELS.update().where(same, c.version == known.version)
                        connection.execute(again.values(scores=row["scores"]))
                    return int(known.version)
            latest = connection.scalar(sql.select(sql.func.max(c.version)).where(c.name == row["name"]))
            version = (latest or 0) + 1
        here = sql.and_(ours, c.version == version)
        known_digest = connection.scalar(sql.select(c.digest).where(here))
        if known_digest is None:
            connection.execute(MODELS.insert().values(**{**row, "version": version}))
        elif known_digest != row["digest"] and row["variant"] == "fp32":
            raise ModelError(f"{row['name']}@{version} is another graph; register this one as a new version.")
        else:
            connection.execute(MODELS.update().where(here).values(**row))
        return version

    def get(self, reference: str) -> Model:
        """The Model of "name" (its latest version), "name@3" or "name@alias"; "/int8" behind it names a variant.

        Raises `NotRegistered` with one sentence that says what is near and what to do next.
        """
        rest, _, variant = reference.partition("/")
        name, _, which = rest.partition("@")
        c = MODELS.c
        with self._reading() as connection:
            known = connection.execute(
                sql.select(c.version, c.variant).where(c.name == name).order_by(c.version, c.variant)
            ).all()
            if not known:
                raise NotRegistered(self._no_model(connection, name))
            versions = sorted({row.version for row in known})
            if not which:
                version = versions[-1]
            elif which.isdecimal():
                version = int(which)
            else:
                version = self._aliased(connection, name, which)
            if version not in versions:
                raise NotRegistered(f"{name} has no version {which}; it has {_series(versions)}.")
            found = connection.execute(
                sql.select(MODELS).where(c.name == name, c.version == version, c.variant == (variant or "fp32"))
            ).first()
        if found is None:
            there = [row.variant for row in known if row.version == version]
            raise NotRegistered(
                f"{name}@{version} has no variant {variant or 'fp32'!r}; it has {', '.join(there)}: "
                f"name one, or make it with `airserve compress {name}@{version} {variant or 'int8'}`."
            )
        return self._model(found)

    def _no_model(self, connection: sql.Connection, name: str) -> str:
        names = list(connection.scalars(sql.select(MODELS.c.name).distinct().order_by(MODELS.c.name)))
        if not names:
            return f"no model named {name!r}: the registry in {self.home} is empty; `airserve train` or `import` one."
        near = get_close_matches(name, names) or names[:5]
        return f"no model named {name!r} in {self.home}; perhaps {', '.join(near)}? `airserve models` lists them."

    def _aliased(self, connection: sql.Connection, name: str, alias: str) -> int:
        rows = connection.execute(sql.select(ALIASES.c.alias, ALIASES.c.version).where(ALIASES.c.name == name))
        known = {row.alias: int(row.version) for row in rows}
        if alias not in known:
            near = get_close_matches(alias, list(known)) or list(known)
            hint = f"perhaps {', '.join(near)}?" if near else "it has none; give a version number."
            raise NotRegistered(f"{name} has no alias {alias!r}; {hint}")
        return known[alias]

    def variants(self, model: Model) -> list[Model]:
        """The Models of the same name and version, fp32 first, the others in the order they were made."""
        return self._where(sql.and_(MODELS.c.name == model.name, MODELS.c.version == model.version))

    def models(self) -> list[Model]:
        """Every Model: by name, newest version first, fp32 before its variants."""
        return self._where(sql.true())

    def trained(self, recipe: str) -> Model | None:
        """The newest Model whose lineage states this recipe, a hash of all that training depends on."""
        found = self._where(MODELS.c.recipe == recipe)
        return max(found, key=lambda model: model.version, default=None)

    def alias(self, model: Model, alias: str) -> None:
        """Let `name@alias` mean this Model's version, whatever it meant before."""
        if not NAME.fullmatch(alias):
            raise ModelError(f"{alias!r} is not a usable alias; use letters, digits, dots, hyphens and underscores.")
        _check_alias(alias)
        with self._writing() as connection:
            _point(connection, model.name, alias, model.version)

    def aliases(self, model: Model) -> list[str]:
        """What `name@...` may be called to mean this Model's version."""
        c = ALIASES.c
        with self._reading() as connection:
            wanted = sql.select(c.alias).where(c.name == model.name, c.version == model.version).order_by(c.alias)
            return list(connection.scalars(wanted))

    def keep(self, key: str, value: Any) -> None:
        """Keep a measured fact, plain data, under a key that names its content, engine and machine."""
        plain = to_plain(value)
        with self._writing() as connection:
            connection.execute(FACTS.delete().where(FACTS.c.key == key))
            connection.execute(FACTS.insert().values(key=key, value=plain))

    def kept(self, key: str) -> Any | None:
        """The fact kept under a key, or None."""
        with self._reading() as connection:
            return connection.scalar(sql.select(FACTS.c.value).where(FACTS.c.key == key))

    def store(self, data: bytes, suffix: str = "") -> Path:
        """The file that holds these bytes, named by their SHA-256: for heads, tails and what processes read."""
        path = self.home / "files" / f"{hashlib.sha256(data).hexdigest()}{suffix}"
        try:
            _write(path, data, [])
        except OSError as error:
            raise _unwritable(self.home, error) from None
        return path

    def _where(self, condition: sql.ColumnElement[bool]) -> list[Model]:
        c = MODELS.c
        order = (c.name, c.version.desc(), sql.case((c.variant == "fp32", 0), else_=1), c.id)
        with self._reading() as connection:
            return [
                self._model(row) for row in connection.execute(sql.select(MODELS).where(condition).order_by(*order))
            ]

    def _model(self, row: sql.Row[Any]) -> Model:
        return Model(
            name=row.name,
            version=row.version,
            variant=row.variant,
            path=self.home / "models" / f"{row.digest}.onnx",
            digest=row.digest,
            signature=from_plain(Signature, row.signature),
            samples_path=None if row.samples is None else self.home / "samples" / f"{row.samples}.npz",
            scores=row.scores,
            lineage=row.lineage,
        )


def check_served(name: str, signature: Signature) -> None:
    """Raises `ModelError` where a protocol carries not all that a graph takes and gives."""
    for tensor in (*signature.inputs, *signature.outputs):
        if tensor.dtype not in DATATYPE:
            raise ModelError(f"{name}: {unserved(tensor)}.")


def _open(home: Path) -> sqlite3.Connection:
    """A connection, which only reads where the folder may not be written, as in the image of a container.

    SQLite needs files of its own beside the database even to read it, unless it is told that nobody writes: so it is
    where no writer has left any.
    """
    file = home / FILE
    writable = os.access(home, os.W_OK)
    alone = not file.with_name(f"{FILE}-wal").exists()
    query = "" if writable else f"?mode=ro&immutable={int(alone)}"
    connection = sqlite3.connect(f"file:{quote(str(file))}{query}", uri=True, check_same_thread=False)
    connection.isolation_level = None  # we say BEGIN: the driver's own would come too late for a write lock
    connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    if writable and connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode=WAL")
    return connection


def _begin(connection: sql.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _point(connection: sql.Connection, name: str, alias: str, version: int) -> None:
    connection.execute(ALIASES.delete().where(ALIASES.c.name == name, ALIASES.c.alias == alias))
    connection.execute(ALIASES.insert().values(name=name, alias=alias, version=version))


def _check_alias(alias: str | None) -> None:
    if alias is not None and alias.isdecimal():
        raise ModelError(f"an alias cannot be a number, for {alias} names a version; use a word, such as `live`.")


def _samples_bytes(samples: Samples | Path | None) -> bytes | None:
    if samples is None:
        return None
    if isinstance(samples, Path):
        load_samples(samples)
        return samples.read_bytes()
    with tempfile.TemporaryDirectory(prefix="airserve-") as folder:
        path = Path(folder) / "samples.npz"
        save_samples(samples, path)
        return path.read_bytes()


def _unwritable(home: Path, error: OSError | sql.exc.DatabaseError) -> ModelError:
    """The error for a disk that is full, a folder that may not be written, or a file that is no database."""
    reason = error.strerror if isinstance(error, OSError) else str(error.orig)
    return ModelError(f"the registry in {home} cannot be written: {reason}; nothing was kept.")


def _write(path: Path, data: bytes, made: list[Path]) -> None:
    """Write a content-addressed file whole or not at all; note in `made` that it is new."""
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    made.append(path)


def _series(versions: list[int]) -> str:
    return ", ".join(map(str, versions[-8:]))
