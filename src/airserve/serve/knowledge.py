"""Knowledge bases and assistants of a service: SQLite in one folder, which its workers share.

Each belongs to a tenant, who sees no other's. Vectors stand beside the passages that they are of.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from airserve.model import Array

SCHEMA = """
CREATE TABLE IF NOT EXISTS bases (
    id TEXT PRIMARY KEY, tenant TEXT, name TEXT, description TEXT, revision INTEGER DEFAULT 0, UNIQUE (tenant, name));
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY, base TEXT REFERENCES bases ON DELETE CASCADE, filename TEXT, format TEXT, uploaded TEXT,
    status TEXT, indexer INTEGER);
CREATE TABLE IF NOT EXISTS passages (
    document TEXT REFERENCES documents ON DELETE CASCADE, encoder TEXT, text TEXT, vector BLOB);
CREATE INDEX IF NOT EXISTS passages_of ON passages (document);
CREATE TABLE IF NOT EXISTS assistants (id TEXT PRIMARY KEY, tenant TEXT, said TEXT, created TEXT, updated TEXT);
"""
KEPT_BYTES = 256 << 20  # of vectors that a worker keeps in memory


class Passages(NamedTuple):
    """What of a knowledge base can be searched: texts, the files they are from, and vectors of shape (n, size)."""

    texts: list[str]
    files: list[str]
    vectors: Array


class Taken(LookupError):
    """A name that a tenant has given already; the message is one sentence."""


class Gone(LookupError):
    """A knowledge base that was deleted meanwhile; the message is one sentence."""


@final
class Knowledge:
    """The store in a folder; rows are given as dictionaries. Raises `OSError`, `sqlite3.Error`.

    What takes long, `index` and `passages`, may be asked on any thread; all else on the one that made it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "knowledge.sqlite"
        self._db = _opened(self._file)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(SCHEMA)
        self._kept: dict[tuple[str, str], tuple[int, Passages]] = {}  # the latest read last
        self._reading = threading.Lock()
        self.indexing = asyncio.Lock()  # of a worker, one document at a time

    # knowledge bases

    def add_base(self, tenant: str, name: str, description: str | None) -> str:
        """Raises `Taken`."""
        identity = str(uuid.uuid4())
        try:
            self._db.execute(
                "INSERT INTO bases (id, tenant, name, description) VALUES (?, ?, ?, ?)",
                (identity, tenant, name, description),
            )
        except sqlite3.IntegrityError:
            raise Taken(f"there is a knowledge base {name[:80]!r} already; choose another name.") from None
        return identity

    def change_base(self, identity: str, said: dict[str, str]) -> None:
        """Raises `Taken`."""
        try:
            for key in ("name", "description"):
                if key in said:
                    self._db.execute(f"UPDATE bases SET {key} = ? WHERE id = ?", (said[key], identity))
        except sqlite3.IntegrityError:
            raise Taken(f"there is a knowledge base {said['name'][:80]!r} already; choose another name.") from None

    def drop_base(self, identity: str) -> None:
        self._db.execute("DELETE FROM bases WHERE id = ?", (identity,))

    def bases(self, tenant: str, identity: str | None = None) -> list[dict[str, Any]]:
        return self._mine("bases", tenant, identity)

    # documents

    def add_document(self, base: str, filename: str, form: str) -> str:
        """A document that is being indexed, by this process. Raises `Gone`."""
        identity = str(uuid.uuid4())
        try:
            self._db.execute(
                "INSERT INTO documents VALUES (?, ?, ?, ?, ?, 'PROCESSING', ?)",
                (identity, base, filename, form, _now(), os.getpid()),
            )
        except sqlite3.IntegrityError:
            raise _gone(base) from None
        return identity

    def index(self, document: str, encoder: str, texts: Sequence[str], vectors: Array) -> None:
        """A document's passages are there: from now on they are found."""
        made = [(document, encoder, t, v.astype("<f4").tobytes()) for t, v in zip(texts, vectors, strict=True)]
        with self._apart() as db, db:
            db.execute("BEGIN IMMEDIATE")
            if not db.execute("SELECT 1 FROM documents WHERE id = ?", (document,)).fetchone():
                return  # deleted meanwhile
            db.executemany("INSERT INTO passages VALUES (?, ?, ?, ?)", made)
            _status(db, document, "READY")

    def fail(self, document: str) -> None:
        _status(self._db, document, "FAILED")

    def drop_document(self, document: str) -> None:
        _status(self._db, document, "FAILED")  # for the revision
        self._db.execute("DELETE FROM documents WHERE id = ?", (document,))

    def documents(self, base: str, identity: str | None = None) -> list[dict[str, Any]]:
        found = self._db.execute("SELECT * FROM documents WHERE base = ? ORDER BY rowid", (base,)).fetchall()
        made = [dict(row) for row in found if identity in (None, row["id"])]
        for row in made:
            if row["status"] == "PROCESSING" and not _lives(row["indexer"]):
                row["status"] = "FAILED"  # its worker died; upload it again
        return made

    def encoders(self, base: str) -> list[str]:
        """Whose vectors a knowledge base has."""
        found = self._db.execute(
            "SELECT DISTINCT encoder FROM passages JOIN documents ON document = id WHERE base = ?", (base,)
        )
        return [row[0] for row in found]

    def passages(self, base: str, encoder: str) -> Passages:
        """What can be searched with an encoder's vectors. Raises `Gone`."""
        kept, key = self._kept, (base, encoder)
        with self._apart() as db:
            row = db.execute("SELECT revision FROM bases WHERE id = ?", (base,)).fetchone()
            if row is None:
                raise _gone(base)
            if (found := kept.get(key)) is not None and found[0] == row[0]:
                return found[1]
            with self._reading:  # once, by whoever asks first
                if (found := kept.get(key)) is None or found[0] != row[0]:
                    kept.pop(key, None)
                    found = kept[key] = row[0], _read(db, base, encoder)
                    while len(kept) > 1 and sum(one.vectors.nbytes for _, one in kept.values()) > KEPT_BYTES:
                        del kept[next(iter(kept))]
                return found[1]

    # assistants

    def add_assistant(self, tenant: str, said: dict[str, Any]) -> str:
        identity, now = str(uuid.uuid4()), _now()
        self._db.execute(
            "INSERT INTO assistants VALUES (?, ?, ?, ?, ?)", (identity, tenant, json.dumps(said), now, now)
        )
        return identity

    def change_assistant(self, identity: str, said: dict[str, Any]) -> None:
        self._db.execute(
            "UPDATE assistants SET said = ?, updated = ? WHERE id = ?", (json.dumps(said), _now(), identity)
        )

    def drop_assistant(self, identity: str) -> None:
        self._db.execute("DELETE FROM assistants WHERE id = ?", (identity,))

    def assistants(self, tenant: str, identity: str | None = None) -> list[dict[str, Any]]:
        return [row | {"said": json.loads(row["said"])} for row in self._mine("assistants", tenant, identity)]

    def close(self) -> None:
        self._db.close()

    def _mine(self, table: str, tenant: str, identity: str | None) -> list[dict[str, Any]]:
        which, given = ("", (tenant,)) if identity is None else (" AND id = ?", (tenant, identity))
        found = self._db.execute(f"SELECT * FROM {table} WHERE tenant = ?{which} ORDER BY rowid", given)
        return [dict(row) for row in found]

    @contextmanager
    def _apart(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread alone; to open one takes less than any use of it."""
        db = _opened(self._file)
        try:
            yield db
        finally:
            db.close()


def _opened(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(file, timeout=5.0, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys=ON")
    return db


def _read(db: sqlite3.Connection, base: str, encoder: str) -> Passages:
    found = db.execute(
        "SELECT text, filename, vector FROM passages JOIN documents ON document = id "
        "WHERE base = ? AND encoder = ? ORDER BY passages.rowid",
        (base, encoder),
    ).fetchall()
    vectors = np.stack([np.frombuffer(row[2], "<f4") for row in found]) if found else np.zeros((0, 1), "float32")
    return Passages([row[0] for row in found], [row[1] for row in found], vectors)


def _status(db: sqlite3.Connection, document: str, status: str) -> None:
    db.execute("UPDATE documents SET status = ? WHERE id = ?", (status, document))
    db.execute(
        "UPDATE bases SET revision = revision + 1 WHERE id = (SELECT base FROM documents WHERE id = ?)", (document,)
    )


def _gone(base: str) -> Gone:
    return Gone(f"there is no knowledge base {base} any more.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
