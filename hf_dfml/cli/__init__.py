"""The door: `hf-dfml quickstart | pool | train | evaluate | adapt | push | serve | demo | zoo`, a file each."""

from __future__ import annotations

from collections.abc import Sequence

from hf_dfml.utils.interrupt import leave_at_once


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `hf-dfml`: errors that a user can mend are one sentence, not a traceback."""
    if argv is None:
        leave_at_once("hf-dfml")
    from hf_dfml.cli.commands import run_command

    run_command(argv)


__all__ = ["main"]
