"""What is told to a user when something cannot be done: one sentence with what, where and what next.

    UserError                 exit status 2: bad input, nothing done, nothing lost
    ├── model.ModelError          a model or samples that cannot be used as asked
    ├── arrivals.ArrivalError     an arrival law that cannot be followed
    ├── documents.DocumentError   a text that is no YAML, or has a key twice
    ├── place.DescriptionError    a description that cannot be used
    ├── registry.NotRegistered    a model that the registry does not have
    ├── learn.tasks.TaskError     data that are not on this machine
    ├── network.radio.TraceError  a radio trace that is not there
    ├── network.slicing.PolicyError  a slice policy that cannot be used, or gave what it had not
    ├── network.core.CoreError    a rule of the user-plane function that cannot be followed
    ├── network.admission.AdmissionError  a booking of a slice that cannot be met
    ├── network.qos.QosError      a 5QI that is not standardised
    ├── place.PlanError           a pin or a model that no plan can have
    ├── place.DeploymentError     a deployment that cannot be made or does not start
    ├── serve.DriveError          a run that could not be made
    ├── web.page.PageError        a page that cannot be written
    └── Unknown                   a name that does not exist, with what is near

Every room derives its own from `UserError`; the command line prints the sentence and no traceback.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import final


class UserError(Exception):
    """Bad input; the message is one sentence for the user."""


@final
class Unknown(UserError, LookupError):
    """A name that does not exist.

    >>> raise Unknown("slice policy", "ratioo", ["ratio", "strict"])
    Traceback (most recent call last):
    airserve.errors.Unknown: no slice policy named 'ratioo'; perhaps ratio?
    """

    def __init__(self, kind: str, name: str, names: Sequence[str], what_next: str = "") -> None:
        near = get_close_matches(name, names) or list(names)[:8]
        hint = f"; perhaps {', '.join(near)}?" if near else "; there is none yet."
        super().__init__(f"no {kind} named {name!r}{hint}{' ' + what_next if what_next else ''}")
