"""The entry point of the command line.

Exit status: 0 done and kept, 1 promise not kept, 2 bad input, 3 no plan exists, 4 the run is invalid.
"""

from __future__ import annotations

import os
import sys
import traceback

from airserve.errors import UserError

INTERRUPTED = 130  # exit status: 128 + SIGINT
STOPPED = "airserve: interrupted; what was started has been stopped."


def main() -> None:
    """The entry point: errors for users are one sentence; Ctrl-C is quiet, and so is a reader who has enough."""
    try:
        try:
            _run()
        finally:
            if sys.stdout is not None:  # it may have been closed
                sys.stdout.flush()
    except KeyboardInterrupt:  # while the commands were still being imported; later typer makes an exit of it
        sys.stderr.write(f"{STOPPED}\n")
        sys.exit(INTERRUPTED)
    except (BrokenPipeError, SystemExit) as ended:
        if not isinstance(ended, BrokenPipeError) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)  # typer and rich make 1 of it, which says that a promise was not kept


def _run() -> None:
    if sys.argv[1:2] == ["serve"]:
        _serve(sys.argv[2:])
    from airserve.cli import deployments, models, network, services  # noqa: F401 (each adds its commands)
    from airserve.cli.app import BAD_INPUT, app, note

    try:
        app()
    except UserError as error:
        note.print(f"airserve: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(BAD_INPUT)
    except (KeyboardInterrupt, SystemExit) as ended:  # typer turns the first into the second
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        note.print(STOPPED)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # as main says
        raise
    except Exception as error:
        if os.environ.get("AIRSERVE_DEBUG"):
            raise
        from airserve.registry import home

        crash = home() / "crash.log"
        try:
            crash.parent.mkdir(parents=True, exist_ok=True)
            crash.write_text(traceback.format_exc())
            where = f"see {crash}"
        except OSError:
            traceback.print_exc()
            where = "see above"
        note.print(
            f"airserve: a fault of airserve itself ({type(error).__name__}); {where} and report it.",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(70)


def _serve(words: list[str]) -> None:
    """Serves where the words are plain, and does not return then."""
    from airserve.cli.serving import plain
    from airserve.serve.starting import supervise

    if (configuration := plain(words)) is not None:
        try:
            configuration.check()
        except UserError:
            return  # said by the full reading, as all errors are
        try:
            sys.exit(supervise(configuration))
        except KeyboardInterrupt:  # before it listened for signals
            sys.stderr.write(f"{STOPPED}\n")
            sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
