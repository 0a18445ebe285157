"""`hf-dfml train METHOD`: a method of this library or of a file of the user's own over a pool."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from hf_dfml.methods.catalogue import METHODS, find_method, is_file

OWN = "FILE.py:CLASS"


DEFAULT = "pool-distillation"
"""The method of a command line that begins with an option."""


class _Methods(TyperGroup):
    """The methods by name, and any `file.py:Class`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in the base class; without a method, `DEFAULT` is meant."""
        if args and args[0].startswith("--") and args[0] != "--help":
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a method; all files share one."""
        return super().get_command(ctx, OWN if is_file(cmd_name) else cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As in the base class; names of methods may be typed with underscores, as those of their files."""
        name, *rest = args
        return super().resolve_command(ctx, [name if is_file(name) else name.replace("_", "-"), *rest])


train_app = typer.Typer(
    cls=_Methods,
    help="Run a method over a pool; without METHOD, pool distillation.\n\n`hf-dfml train METHOD --help` lists the "
    "method's options, such as `hf-dfml train tgr --help`; they are those of `recipes/METHOD.py`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


def train(context: typer.Context) -> None:
    """Run the method that the command is called after; its options are read by the recipes' parser."""
    from hf_dfml.cli.recipe import train as run_method

    method = find_method(str(context.info_name))
    raise typer.Exit(run_method(method, context.args, words=["hf-dfml", "train", str(context.info_name)]))


def _title(method: str) -> str:
    """The first line of a method's file, read without importing it, which takes seconds."""
    spec = find_spec(f"hf_dfml.methods.{method}")
    assert spec and spec.origin
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or method).splitlines()[0]


_TITLES = {name.replace("_", "-"): _title(name) for name in METHODS}
for _name, _help in (_TITLES | {OWN: "A method of your own: a class of your file; see docs/extending.md."}).items():
    train_app.command(
        _name,
        help=_help,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )(train)
