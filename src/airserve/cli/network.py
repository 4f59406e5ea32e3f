"""The commands of the network alone: simulate, admit, traces."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from airserve.cli.app import KEPT, NOT_KEPT, File, Json, Seed, app, digits, out, rows, show

command = partial(app.command, rich_help_panel="The network alone")


@command()
def simulate(
    file: File,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long the devices ask.")] = 30.0,
    seed: Seed = 1,
    html: Annotated[Path | None, typer.Option(help="Write a page with distributions by span and shares.")] = None,
    as_json: Json = False,
) -> None:
    """Run a description in the twin, where a promise may fail (status 1); the same seed gives the same, to the byte."""
    from airserve.network import twin
    from airserve.place.description import read
    from airserve.place.planning import flows, known_or_planned
    from airserve.web.simulation import contents, save, sentence

    factory = read(file)
    choices = known_or_planned(factory, file.stem, progress=not as_json)
    work = flows(factory, choices)
    outcome = twin.run(factory.network, work, until_s=seconds, seed=seed)
    found = outcome.summary()
    promises = {one.name: one.promise.plain() for one in factory.services if one.promise is not None}
    status, said = KEPT, ""
    if html is not None or promises:
        seen = contents(file.stem, factory.network, work, outcome, promises, seconds, seed)
        headline, detail, state = sentence(seen)
        if html is not None:
            save(seen, html)
        if promises:
            status, said = NOT_KEPT if state == "broken" else KEPT, f"{headline} {detail}"
        for one, service in zip(found["services"], seen["services"], strict=True):
            if one["name"] in promises:
                one["promise"] = {key: service[key] for key in ("promise_ms", "percentile", "value_ms", "kept")}
    if as_json:
        show({**found, "realtime_factor": round(outcome.realtime_factor, 1)})
        raise typer.Exit(status)
    absences = sorted({one for s in found["services"] for one, part in s["share_of_p99"].items() if part})
    rows(
        ["service", "sent", "answered", "p50 ms", "p90", "p99", "max", "power", *(f"{one} in p99" for one in absences)],
        [[s["name"], s["sent"], s["answered"], *(digits(s["latency_ms"][k]) for k in ("p50", "p90", "p99", "max")),
          digits(s["power"]), *(f"{s['share_of_p99'][one] or 0:.0%}" for one in absences)]
         for s in found["services"]],
    )  # fmt: skip
    rows(
        ["slice", "PRBs up", "Mbit/s up", "PRBs down", "Mbit/s down"],
        [[s["name"], *(x for way in ("up", "down") for x in (f"{s[way]['share_used']:.1%}", digits(s[way]["mbps"])))]
         for s in found["slices"]],
    )  # fmt: skip
    if "cells" in found:
        rows(
            ["cell", "devices", *(f"{what} {way}" for way in ("up", "down") for what in ("PRBs", "Mbit/s", "SINR dB"))],
            [[s["name"], s["devices"],
              *(x for way in ("up", "down")
                for x in (f"{s[way]['share_used']:.1%}", digits(s[way]["mbps"]), digits(s[way]["sinr_db"]["p50"])))]
             for s in found["cells"]],
        )  # fmt: skip
    rows(
        ["base station", "power", "sends", "listens"],
        [[s["name"], digits(s["power"]), f"{s['sends']:.1%}", f"{s['listens']:.1%}"] for s in found["base_stations"]],
    )
    out.print(
        "power is relative: a device's deep sleep draws 1 (TR 38.840), and so does a base station's (TR 38.864)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    out.print(f"{outcome.realtime_factor:.0f} times real time; simulated, no packet was sent")
    if html is not None:
        out.print(f"page: {html}", highlight=False, soft_wrap=True)
    if said:
        out.print(said, highlight=False, soft_wrap=True)
    raise typer.Exit(status)


@command()
def admit(
    file: File,
    name: Annotated[str, typer.Argument(help="The new slice's name.")],
    devices: Annotated[int, typer.Option(help="How many devices it is for.")],
    up_mbps: Annotated[float, typer.Option(help="Of each device, to the site.")] = 0.0,
    down_mbps: Annotated[float, typer.Option(help="Of each device, back.")] = 0.0,
    dedicated: Annotated[bool, typer.Option("--dedicated", help="Never lent, even while idle.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Book a slice beside those of a description: its share, or what share could be had."""
    from airserve.network.admission import Booking, capacity
    from airserve.network.admission import admit as book
    from airserve.place.counting import requesters
    from airserve.place.description import read

    factory = read(file)
    there = capacity(factory.network, seed, booked=devices)
    booking, known = Booking(devices, up_mbps, down_mbps, dedicated), requesters(factory.services)
    made = book(factory.network.slices, name, booking, there, known)
    if as_json:
        return show({"slice": made.model_dump(exclude_unset=True), "capacity": vars(there)})
    out.print(
        f"{name} fits: min {made.min:g} % of the PRBs{', dedicated' if dedicated else ''}; the whole cell carries "
        f"{there.up_mbps:.0f} Mbit/s up, {there.down_mbps:.0f} down for devices at random positions.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@command()
def traces(
    scenario: Annotated[str, typer.Argument(help="inf-dh, inf-sl, umi, ... of TR 38.901")],
    ues: Annotated[int, typer.Option(min=1)] = 50,
    snapshots: Annotated[int, typer.Option(min=2)] = 100,
    carrier_ghz: float = 3.5,
    bandwidth_mhz: int = 100,
    scs_khz: int = 30,
    gnb_ports: int = 32,
    ue_antennas: int = 4,
    speed_ms: Annotated[float, typer.Option(min=0, help="Of the UEs, in m/s.")] = 0.83,
    snapshot_ms: Annotated[float, typer.Option(min=0.1, help="From one snapshot to the next.")] = 10.0,
    seed: Seed = 1,
) -> None:
    """Make radio traces with Sionna (extra `radio`); stopped, it goes on when it is called again."""
    from airserve.network.tracing import make_for

    path = make_for(
        scenario,
        ues=ues,
        snapshots=snapshots,
        seed=seed,
        snapshot_s=snapshot_ms / 1e3,
        speed_ms=speed_ms,
        carrier_ghz=carrier_ghz,
        bandwidth_mhz=bandwidth_mhz,
        scs_khz=scs_khz,
        gnb_ports=gnb_ports,
        ue_antennas=ue_antennas,
    )
    out.print(f"{path}")
