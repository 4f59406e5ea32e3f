"""The base stations of a run of the twin: one cell, or several; what they did up to some slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import numpy as np

from airserve.model import Array
from airserve.network import cluster, energy, rrc
from airserve.network.buffers import DOWN, Config, N
from airserve.network.carriers import kinds
from airserve.network.cell import Cell
from airserve.network.mac import MacError, initial, prbs_there
from airserve.network.many import Many
from airserve.network.passage import M, World, simulate
from airserve.network.topology import Network


def stand(network: Network, slice_of: Sequence[int], **given: Any) -> Radio:
    """The radio of a network at its start; the arguments are those of `mac.initial` and `cluster.initial`."""
    several = len(network.cell_names) > 1
    return Several(network, slice_of, **given) if several else One(network, slice_of, **given)


class Radio(ABC):
    """The radio of a network, with books of what was done up to some slots, its edges."""

    config: Config

    def __init__(self) -> None:
        self.edges: list[int] = []  # slots, in order, that are still to come
        self.books: list[list[energy.Book]] = []

    def run(self, world: World, rules: Array, end: int) -> None:
        """Simulate up to a slot."""
        while self.edges and self.edges[0] <= end:
            edge = self.edges.pop(0)
            self.simulate(world, rules, edge)
            self.books.append(self.book(edge))
        self.simulate(world, rules, end)

    @abstractmethod
    def simulate(self, world: World, rules: Array, end: int) -> None: ...

    @abstractmethod
    def book(self, slot: int) -> list[energy.Book]:
        """What was done up to a slot of the first kind of carriers, of each kind with its own slots."""

    @abstractmethod
    def kinds(self) -> list[tuple[Cell, Array, Array]]:
        """The kinds of carriers, and the devices and the cells that are of each, bool."""

    @abstractmethod
    def close(self, world: World) -> None:
        """Fill in the marks that the run did not come to."""

    @abstractmethod
    def prbs_there(self, slots: int) -> Array:
        """PRBs of all cells together before a slot of the first kind, int64 (2,)."""

    @abstractmethod
    def seen(self, marks: Array) -> Many | None:
        """What is told of each cell where there are several."""

    @property
    @abstractmethod
    def prbs_used(self) -> Array:
        """Of all cells together, int64 (slices, 2)."""

    @property
    @abstractmethod
    def slices(self) -> Array:
        """What the slice policy sees, SLICE (2, slices)."""

    @property
    @abstractmethod
    def slot(self) -> int:
        """The slot, of the first kind, up to which it has run."""

    @property
    @abstractmethod
    def failed_blocks(self) -> float:
        """Part of the transport blocks not decoded at once."""


@final
class One(Radio):
    """The radio of a network of one cell."""

    def __init__(
        self, network: Network, slice_of: Sequence[int], *, marks: int, carriers: Sequence[int], **given: Any
    ) -> None:
        del marks, carriers
        super().__init__()
        self.config, self._state = initial(network, slice_of, **given)
        self._cell = network.cell

    def simulate(self, world: World, rules: Array, end: int) -> None:
        simulate(self._state, self.config, world, rules, end)

    def book(self, slot: int) -> list[energy.Book]:
        s = self._state
        return [energy.book(self.config.access, s.ue, slot, s.n[[N.sent]], s.prbs_used[:, DOWN].sum(keepdims=True))]

    def kinds(self) -> list[tuple[Cell, Array, Array]]:
        return [(self._cell, np.ones(self.config.ues, bool), np.ones(1, bool))]

    def close(self, world: World) -> None:
        world.counts[world.n[M.mark] :] = self._state.prbs_used, self._state.nbytes

    def prbs_there(self, slots: int) -> Array:
        return prbs_there(self._state.pattern, self.config.prbs, slots)

    def seen(self, marks: Array) -> None:
        del marks

    @property
    def prbs_used(self) -> Array:
        return self._state.prbs_used

    @property
    def slices(self) -> Array:
        return self._state.slices

    @property
    def slot(self) -> int:
        return int(self._state.n[N.slot])

    @property
    def failed_blocks(self) -> float:
        return float(self._state.n[N.failed] / max(self._state.n[N.blocks], 1))


@final
class Several(Radio):
    """The radio of a network of several cells, of one kind of carriers or of several."""

    def __init__(self, network: Network, slice_of: Sequence[int], **given: Any) -> None:
        if not slice_of:
            raise MacError(f"cells {', '.join(network.cell_names)} need at least one device, and none was given.")
        super().__init__()
        self.config, self._cluster, self._there = cluster.initial(network, slice_of, **given)
        self._network, self._first, self._kinds = network, self._there.serving, kinds(network).cells

    def simulate(self, world: World, rules: Array, end: int) -> None:
        cluster.simulate(self._cluster, world, rules, end)

    def book(self, slot: int) -> list[energy.Book]:
        t = self._cluster
        sent, prbs_down = t.n[:, N.sent], t.prbs_used[:, :, DOWN].sum(axis=1)
        return [
            energy.book(rrc.access(cell), t.whole.ue, self._slots(g, slot), sent, prbs_down)
            for g, cell in enumerate(self._kinds)
        ]

    def kinds(self) -> list[tuple[Cell, Array, Array]]:
        kind = self._cluster.air.kind
        return [(cell, kind[self._first] == g, kind == g) for g, cell in enumerate(self._kinds)]

    def close(self, world: World) -> None:
        left, t = world.n[M.mark], self._cluster
        world.counts[left:] = t.prbs_used.sum(axis=0), t.nbytes.sum(axis=0)
        t.counts[left:] = np.stack([t.prbs_used.sum(axis=1), t.nbytes.sum(axis=1)], axis=1)

    def prbs_there(self, slots: int) -> Array:
        there: Array = self._prbs_of_cells(slots).sum(axis=0)
        return there

    def seen(self, marks: Array) -> Many:
        t, one = self._cluster, self.config
        there = np.array([self._prbs_of_cells(int(mark)) for mark in marks])
        return Many(
            self._network.cell_names,
            self._there,
            t.air.cell.copy(),
            np.diff(t.counts[:, :, 0], axis=0) / np.maximum(np.diff(there, axis=0), 1),
            np.diff(t.counts[:, :, 1], axis=0) * 8e-6 / (np.diff(marks) * one.slot_s)[:, None, None],
            np.diff(marks) * one.slot_s,
            t.air.sinr.copy(),
            t.devices.books.copy(),
            t.devices.walk.place_m.copy() if self._network.cell.speed_kmh else self._there.position_m,
            t.air.device[..., 0] / np.where(t.air.device[..., 1] > 0, t.air.device[..., 1], np.nan),
        )

    def _slots(self, g: int, slots: int) -> int:
        """Slots of a kind of carriers that are run before a slot of the first kind."""
        one, other = self._cluster.configs[0], self._cluster.configs[g]
        fill_s = slots * one["slot_s"] - one["prepare_s"]
        return int(np.ceil((fill_s + other["prepare_s"]) / other["slot_s"] - 1e-6))

    def _prbs_of_cells(self, slots: int) -> Array:
        """PRBs of each cell before a slot of the first kind, int64 (cells, 2)."""
        t = self._cluster
        of_kinds = [
            prbs_there(t.patterns[g], int(t.configs["prbs"][g]), self._slots(g, slots)) for g in range(len(self._kinds))
        ]
        return np.array(of_kinds)[t.air.kind]

    @property
    def prbs_used(self) -> Array:
        used: Array = self._cluster.prbs_used.sum(axis=0)
        return used

    @property
    def slices(self) -> Array:
        return self._cluster.slices

    @property
    def slot(self) -> int:
        return int(self._cluster.n[0, N.slot])

    @property
    def failed_blocks(self) -> float:
        n = self._cluster.n.sum(axis=0)
        return float(n[N.failed] / max(n[N.blocks], 1))
