"""The open sets: listing loads nothing, names are checked."""

import subprocess
import sys

import pytest

from airserve import catalog

SETS = [
    catalog.nets,
    catalog.tasks,
    catalog.pretexts,
    catalog.compressors,
    catalog.slices,
    catalog.planners,
    catalog.sites,
    catalog.protocols,
]


@pytest.mark.parametrize("one", SETS, ids=lambda s: s.kind)
def test_every_set_has_members_and_says_what_is_near(one):
    assert len(one) > 0
    assert list(one) == sorted(one)
    with pytest.raises(LookupError, match=f"no {one.kind} named 'nothing-like-it'; perhaps "):
        one["nothing-like-it"]


def test_listing_the_nets_loads_no_torch():
    code = "import sys; from airserve.catalog import nets; list(nets); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
