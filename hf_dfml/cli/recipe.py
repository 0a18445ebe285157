"""What `hf-dfml train METHOD` and `recipes/METHOD.py` do with a command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_dfml.methods.base import Method


def train(method_class: type[Method], argv: Sequence[str] | None = None, *, words: Sequence[str] | None = None) -> int:
    """Run a method as a command line says, which means `--preset cpu` where it names neither a preset nor a file.

    Args:
        method_class: the method.
        argv: the options; those of this process by default.
        words: what the user has typed before them, if not the name of a script.

    Returns:
        The exit code: 0 done, 3 stopped before its end, 130 stopped by Ctrl-C.
    """
    from hf_dfml.arguments import Default, parse
    from hf_dfml.estimate import fitted_to_pool, without_batch_terms
    from hf_dfml.pipeline import run
    from hf_dfml.run_config import RunConfig

    fit: Any = without_batch_terms
    if method_class.__module__ == "hf_dfml.methods.pool_distillation":
        fit = partial(fitted_to_pool, method_class.Config)
    description = sys.modules[method_class.__module__].__doc__ if words else sys.modules["__main__"].__doc__
    configs = parse(
        method_class,
        RunConfig,
        argv,
        description=description,
        program=" ".join(words) if words else None,
        default=Default(fit=fit),
    )
    command = [*words, *(argv or [])] if words else None
    return run(method_class, *configs, argv=command).exit_code


def main(method_class: type[Method]) -> None:
    """The whole of a recipe: errors are a sentence, and the process ends with the exit code of the run."""
    from hf_dfml.errors import errors_in_a_sentence

    with errors_in_a_sentence():
        raise SystemExit(train(method_class))
