"""Knowledge bases and assistants of a service: SQLite in one folder, which its workers share.

Each belongs to a tenant, who sees no other's. Vectors stand beside the passages that they are of.
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Sequence
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
KEPT = 8  # knowledge bases whose vectors a worker keeps in memory


class Passages(NamedTuple):
    """What of a knowledge base can be searched: texts, the files they are from, and vectors of shape (n, size)."""

    texts: list[str]
    files: list[str]
    vectors: Array


class Taken(LookupError):
    """A name that a tenant has given already; the message is one sentence."""


@final
class Knowledge:
    """The store in a folder; rows are given as dictionaries. Raises `OSError`, `sqlite3.Error`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / "knowledge.sqlite", timeout=5.0, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA foreign_keys=ON")
        self._db.executescript(SCHEMA)
        self._kept: dict[tuple[str, str], tuple[int, Passages]] = {}

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
        """A document that is being indexed, by this process."""
        identity = str(uuid.uuid4())
        self._db.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, 'PROCESSING', ?)",
            (identity, base, filename, form, _now(), os.getpid()),
        )
        return identity

    def index(self, document: str, encoder: str, texts: Sequence[str], vectors: Array) -> None:
        """A document's passages are there: from now on they are found."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if not self._db.execute("SELECT 1 FROM documents WHERE id = ?", (document,)).fetchone():
                return  # deleted meanwhile
            self._db.executemany(
                "INSERT INTO passages VALUES (?, ?, ?, ?)",
                [(document, encoder, t, v.astype("<f4").tobytes()) for t, v in zip(texts, vectors, strict=True)],
            )
            self._status(document, "READY")

    def fail(self, document: str) -> None:
        self._status(document, "FAILED")

    def drop_document(self, document: str) -> None:
        self._status(document, "FAILED")  # for the revision
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
        """What can be searched with an encoder's vectors."""
        (revision,) = self._db.execute("SELECT revision FROM bases WHERE id = ?", (base,)).fetchone()
        kept = self._kept.get((base, encoder))
        if kept is not None and kept[0] == revision:
            return kept[1]
        found = self._db.execute(
            "SELECT text, filename, vector FROM passages JOIN documents ON document = id "
            "WHERE base = ? AND encoder = ? ORDER BY passages.rowid",
            (base, encoder),
        ).fetchall()
        vectors = np.stack([np.frombuffer(row[2], "<f4") for row in found]) if found else np.zeros((0, 1), "float32")
        made = Passages([row[0] for row in found], [row[1] for row in found], vectors)
        if len(self._kept) >= KEPT:
            self._kept.clear()
        self._kept[base, encoder] = revision, made
        return made

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

    def _status(self, document: str, status: str) -> None:
        self._db.execute("UPDATE documents SET status = ? WHERE id = ?", (status, document))
        self._db.execute(
            "UPDATE bases SET revision = revision + 1 WHERE id = (SELECT base FROM documents WHERE id = ?)", (document,)
        )


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
