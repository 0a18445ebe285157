"""The door: `hf-dfml quickstart | pool | train | evaluate | adapt | serve`, one file a group of commands."""

from hf_dfml.cli.main import main

__all__ = ["main"]
