"""What a service has counted, in the text format of Prometheus (exposition format 0.0.4), over all its workers."""

from __future__ import annotations

from collections.abc import Iterable

from airserve.serve.metering import BUCKETS_S, Counted
from airserve.serve.service import Service
from airserve.serve.tallying import exposed
from airserve.serve.tenants import Tenant

MEDIA = "text/plain; version=0.0.4; charset=utf-8"


def exposition(service: Service, tenant: Tenant | None = None) -> bytes:
    """The metrics of a service that a tenant may know, or all; names in base units, as Prometheus advises.

    Those are of its models and of itself; an admin sees all tenants.
    """
    known = [s for s in service.served if tenant is None or tenant.may_use(s.name)]
    counted = [(f'model="{escaped(s.name)}",version="{escaped(s.version)}"', s.table.counted(s.slot)) for s in known]
    lines: list[str] = []

    def say(name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> None:
        lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))
        lines.extend(
            f"{name}{{{labels}}} {value:.17g}" if labels else f"{name} {value:.17g}" for labels, value in samples
        )

    def each(of: Iterable[tuple[str, Counted]], name: str) -> list[tuple[str, float]]:
        return [(labels, getattr(c, name)) for labels, c in of]

    requests = [
        (f'{labels},outcome="{outcome}"', float(count))
        for labels, c in counted
        for outcome, count in {"answered": c.answered, **c.failures}.items()
    ]
    say("airserve_requests_total", "counter", "Inference requests by how they ended.", requests)
    say("airserve_rows_total", "counter", "Samples in answered requests.", each(counted, "rows"))
    say("airserve_queue_seconds_total", "counter", "From arrival to work.", each(counted, "queue_s"))
    say("airserve_compute_seconds_total", "counter", "Work on answered requests.", each(counted, "compute_s"))
    name = "airserve_request_duration_seconds"
    lines.extend((f"# HELP {name} From arrival to the end of work.", f"# TYPE {name} histogram"))
    for labels, c in counted:
        total = 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), c.buckets, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}')
        lines.append(f"{name}_sum{{{labels}}} {c.queue_s + c.compute_s:.17g}")
        lines.append(f"{name}_count{{{labels}}} {total}")
    speaking = [s.language is not None for s in known]
    tallied = [s.table.tallies.tallied(s.slot) for s in known]
    lines.extend(exposed([(of, t) for (of, _), t, says in zip(counted, tallied, speaking, strict=True) if says]))
    if service.guard is not None:
        asked, refused = [], []
        for one, requests_, refused_ in service.guard.counted():
            if tenant is not None and not tenant.admin and one.name != tenant.name:
                continue
            of = f'tenant="{escaped(one.name)}",slice="{escaped(one.slice)}"'
            asked.append((of, float(requests_)))
            refused.append((of, float(refused_)))
        say("airserve_tenant_requests_total", "counter", "Requests with a tenant's key, whatever the path.", asked)
        say("airserve_tenant_refused_total", "counter", "Those beyond the tenant's rate or concurrency.", refused)
    say("airserve_start_time_seconds", "gauge", "When the service began, Unix time.", [("", service.table.begun_s)])
    return ("\n".join(lines) + "\n").encode()


def escaped(label: str) -> str:
    """
    >>> print(escaped('a"b'))
    a\\"b
    """
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
