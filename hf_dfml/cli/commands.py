"""The commands together, and what all of them share: both spellings of options, errors in a sentence."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_dfml.cli.classify import adapt, classify
from hf_dfml.cli.compare import compare
from hf_dfml.cli.demo import demo
from hf_dfml.cli.evaluate import evaluate
from hf_dfml.cli.options import Seed, WithHeads
from hf_dfml.cli.pool import pool_app
from hf_dfml.cli.push import push
from hf_dfml.cli.serve import serve
from hf_dfml.cli.train import train_app
from hf_dfml.cli.zoo import zoo
from hf_dfml.errors import TRACEBACK_VARIABLE, errors_in_a_sentence, interrupted
from hf_dfml.version import __version__

SETTINGS = {"token_normalize_func": lambda token: token.replace("-", "_"), "help_option_names": ["-h", "--help"]}
"""Options may be typed with dashes or underscores; help and errors show underscores, as those of methods do."""
LIST_OPTIONS = ("--shots", "--query", "--models")
PROGRAM = "hf-dfml"


class _Commands(TyperGroup):
    """All commands; what Ctrl-C does to them is said here, before typer takes it for its own."""

    def invoke(self, ctx: Any) -> Any:
        """As in the base class."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            interrupted(PROGRAM, interrupt)


app = typer.Typer(
    cls=_Commands,
    help="Data-free meta-learning: a pool of pretrained classifiers in, one few-shot-ready model out.",
    epilog=f"With {TRACEBACK_VARIABLE}=1 in the environment an error shows where it comes from.",
    context_settings=SETTINGS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf_dfml {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Data-free meta-learning: a pool of pretrained classifiers in, one few-shot-ready model out."""


@app.command()
def quickstart(
    output_dir: Annotated[
        Path, typer.Option(help="Folder for the pool, the model, its card and its pictures.")
    ] = Path("runs/quickstart"),
    seed: Seed = 42,
) -> None:
    """See it work without network or data: a small pool, distillation of it, TGR beside it, a model and its card."""
    from hf_dfml.quickstart import run_quickstart

    raise typer.Exit(run_quickstart(output_dir, seed).exit_code)


app.add_typer(pool_app, name="pool")
app.add_typer(train_app, name="train")
for _command in (evaluate, adapt):
    app.command(cls=WithHeads)(_command)
app.command()(classify)
app.command()(compare)
app.command()(push)
app.command()(serve)
app.command()(demo)
app.command()(zoo)


def run_command(argv: Sequence[str] | None = None) -> None:
    """Run one command line, that of this process by default."""
    arguments = _spread(list(sys.argv[1:] if argv is None else argv))
    with errors_in_a_sentence(PROGRAM, own_process=argv is None):
        _with_underscores(typer.main.get_command(app))(arguments, prog_name=PROGRAM)


def _with_underscores(command: Any) -> Any:
    """The command and those below it, whose help and errors spell options with underscores; itself."""
    for option in command.params:
        option.opts = [_spelt(each) for each in option.opts]
        option.secondary_opts = [_spelt(each) for each in option.secondary_opts]
    for below in getattr(command, "commands", {}).values():
        _with_underscores(below)
    return command


def _spelt(option: str) -> str:
    dashes = option[: len(option) - len(option.lstrip("-"))]
    return dashes + option.lstrip("-").replace("-", "_")


def _spread(arguments: list[str]) -> list[str]:
    """`--shots 1 5` -> `--shots 1 --shots 5`, the spelling that typer knows (recipes take the first one)."""
    if arguments[:1] == ["train"]:
        return arguments
    spread: list[str] = []
    current = ""
    for argument in arguments:
        if argument.startswith("-"):
            current = argument if argument in LIST_OPTIONS else ""
        elif current and spread[-1] != current:
            spread.append(current)
        spread.append(argument)
    return spread
