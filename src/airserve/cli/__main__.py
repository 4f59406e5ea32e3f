"""The entry point of the command line.

Exit status: 0 done and kept, 1 promise not kept, 2 bad input, 3 no plan exists, 4 the run is invalid.
"""

from __future__ import annotations

import os
import sys
import traceback

from airserve.cli import deployments, models, network, services  # each adds its commands
from airserve.cli.app import BAD_INPUT, app, note
from airserve.errors import UserError

INTERRUPTED = 130  # exit status: 128 + SIGINT

__all__ = ["deployments", "main", "models", "network", "services"]


def main() -> None:
    """The entry point: errors for users are one sentence, Ctrl-C is quiet."""
    try:
        app()
    except UserError as error:
        note.print(f"airserve: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(BAD_INPUT)
    except (KeyboardInterrupt, SystemExit) as ended:  # typer turns the first into the second
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        note.print("airserve: interrupted; what was started has been stopped.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("AIRSERVE_DEBUG"):
            raise
        from airserve.registry import home

        crash = home() / "crash.log"
        crash.parent.mkdir(parents=True, exist_ok=True)
        crash.write_text(traceback.format_exc())
        note.print(
            f"airserve: a fault of airserve itself ({type(error).__name__}); see {crash} and report it.",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(70)


if __name__ == "__main__":
    main()
