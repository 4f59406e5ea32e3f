"""The core network: a user-plane function whose rules choose a site and enforce a rate, and the link to each site.

Rules are in the manner of PFCP (TS 29.244 5.2.1): PDR, FAR and QER in one `topology.Rule`. A link has a delay, a rate
and a queue in each direction. A request is judged once, when its first bytes reach the user-plane function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from airserve.errors import UserError
from airserve.model import Array
from airserve.network.buffers import wire_bytes
from airserve.network.jit import inner
from airserve.network.topology import Network, Rule

ANY, DROP = -1, -2

RULE = np.dtype(
    [
        ("flow", "i8"),  # ANY, or what has to match
        ("device", "i8"),
        ("slice", "i8"),
        ("destination", "i8"),
        ("forward", "i8"),  # a site, ANY: where the device asked, or DROP
        ("from_s", "f8"),
        ("until_s", "f8"),
        ("rate_bps", "f8", (2,)),  # by direction; 0: no limit
        ("free_s", "f8", (2,)),  # when the rate lets the next byte pass
    ],
    align=True,
)
LINK = np.dtype(
    [
        ("delay_s", "f8"),
        ("rate_bps", "f8"),  # 0: no limit
        ("queue_s", "f8"),  # longest wait in the queue
        ("free_s", "f8", (2,)),  # by direction
        ("dropped", "i8", (2,)),  # messages that found the queue full
    ],
    align=True,
)


class CoreError(UserError, ValueError):
    """A rule that cannot be followed; the message is one sentence for the user."""


@dataclass(frozen=True)
class View:
    """What a controller sees: the time in the run, and what was answered since it was asked last, by flow."""

    now_s: float
    latency_ms: Mapping[str, Array]
    share_used: Mapping[str, tuple[float, float]]  # of the PRBs, by slice: down, up


Controller = Callable[[View], Sequence[Rule] | None]  # the rules from now on, or None: as they are


def links(network: Network) -> Array:
    """LINK of every site, (sites,)."""
    made = np.zeros(len(network.sites), LINK)
    for link, site in zip(made, network.sites, strict=True):
        link["delay_s"] = site.delay_ms / 1000
        link["rate_bps"] = (site.rate_mbps or 0) * 1e6
        link["queue_s"] = site.queue_kb * 8e3 / link["rate_bps"] if site.queue_kb else np.inf
    return made


def compiled(network: Network, rules: Sequence[Rule], flows: Sequence[str], warm_s: float) -> Array:
    """RULE of every rule in the order in which they are tried; times count from the start of the simulation.

    Raises `CoreError` for a service, slice or site that is not there.
    """

    def place(kind: str, name: str | None, names: list[str]) -> int:
        if name is None:
            return ANY
        if name not in names:
            raise CoreError(f"a rule names {kind} {name!r}; there is {', '.join(names)}.")
        return names.index(name)

    sites = [site.name for site in network.sites]
    made = np.zeros(len(rules), RULE)
    for row, rule in zip(made, sorted(rules, key=lambda rule: rule.precedence), strict=True):
        row["flow"] = place("service", rule.service, list(flows))
        row["device"] = ANY if rule.device is None else rule.device
        row["slice"] = place("slice", rule.slice, [s.name for s in network.slices])
        row["destination"] = place("destination", rule.destination, sites)
        row["forward"] = DROP if rule.forward == "drop" else place("forward", rule.forward, sites)
        row["from_s"] = rule.from_s + warm_s if rule.from_s else 0.0
        row["until_s"] = np.inf if rule.until_s is None else rule.until_s + warm_s
        row["rate_bps"] = [(rate or 0) * 1e6 for rate in (rule.down_mbps, rule.up_mbps)]
    return made


def renew(old: Array, new: Array, held: Array) -> Array:
    """RULE from now on: `new`, and behind them, ended, those of `old` that requests on their way are still held to.

    `held`, each request's place in the table, is rewritten. A rule that stays remembers what is to pass it.
    """
    law = [name for name in RULE.names or () if name != "free_s"]
    place = np.full(len(old) + 1, ANY)  # in the new table; the last is that of ANY
    for r, row in enumerate(old):
        same = [k for k in range(len(new)) if k not in place and all((new[k][name] == row[name]).all() for name in law)]
        if same:
            place[r], new["free_s"][same[0]] = same[0], row["free_s"]
    left = [r for r in np.unique(held) if r != ANY and place[r] == ANY]
    place[left] = np.arange(len(left)) + len(new)
    held[:] = place[held]
    ended = old[left]
    ended["until_s"] = -np.inf
    return np.concatenate([new, ended])


def reachable(network: Network, rules: Sequence[Rule], site: str, controlled: bool) -> list[str]:
    """Sites to which requests for a site may come: it, and those that rules forward to; all, with a controller."""
    to = {site, *(rule.forward for rule in rules if rule.forward)}
    return [one.name for one in network.sites if one.kind != "device" and (controlled or one.name in to)]


@inner
def detect(rules: Array, flow: int, device: int, slice_: int, destination: int, at_s: float) -> int:
    """The first rule that matches, or ANY."""
    for r in range(rules.size):
        rule = rules[r]
        if (
            (rule.flow == ANY or rule.flow == flow)
            and (rule.device == ANY or rule.device == device)
            and (rule.slice == ANY or rule.slice == slice_)
            and (rule.destination == ANY or rule.destination == destination)
            and rule.from_s <= at_s < rule.until_s
        ):
            return r
    return ANY


@inner
def enforce(rules: Array, r: int, direction: int, nbytes: int, at_s: float) -> float:
    """When the rate of a rule, or of none, has let a message pass. What is above the rate is held back, not dropped."""
    if r == ANY or rules[r].rate_bps[direction] <= 0:
        return at_s
    rule = rules[r]
    rule.free_s[direction] = max(at_s, rule.free_s[direction]) + 8.0 * wire_bytes(nbytes) / rule.rate_bps[direction]
    return float(rule.free_s[direction])


@inner
def cross(link_of: Array, site: int, direction: int, nbytes: int, at_s: float, droppable: bool) -> float:
    """When a message that comes to the link between user-plane function and site is across it.

    Infinite where the queue is full and it may be dropped.
    """
    link = link_of[site]
    bits = 8.0 * wire_bytes(nbytes)
    if link.rate_bps > 0:
        start_s = max(at_s, link.free_s[direction])
        if droppable and start_s - at_s > link.queue_s:
            link.dropped[direction] += 1
            return np.inf
        link.free_s[direction] = start_s + bits / link.rate_bps
        at_s = link.free_s[direction]
    return float(at_s + link.delay_s)
