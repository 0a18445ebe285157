"""The door: `hf-dfml quickstart | pool | train | evaluate | adapt | serve`."""

from __future__ import annotations

import ast
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from hf_dfml.errors import TRACEBACK_VARIABLE, errors_in_a_sentence
from hf_dfml.utils.text import counted

SETTINGS = {"token_normalize_func": lambda token: token.replace("_", "-"), "help_option_names": ["-h", "--help"]}
LIST_OPTIONS = ("--shots",)
METHODS = {
    "bidf_mkd": "BiDfMKD",
    "dro": "DRO",
    "free": "FREE",
    "pool_distillation": "PoolDistillation",
    "purer": "PURER",
    "tgr": "TGR",
}
"""File of `hf_dfml/methods` and its class."""

app = typer.Typer(
    help="Data-free meta-learning: a pool of pretrained classifiers in, one few-shot-ready model out.",
    epilog=f"With {TRACEBACK_VARIABLE}=1 in the environment an error shows where it comes from.",
    context_settings=SETTINGS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
pool_app = typer.Typer(help="Build, list, check and publish pools of pretrained classifiers.", no_args_is_help=True)
train_app = typer.Typer(
    help="Run a method's recipe over a pool.\n\n`hf-dfml train METHOD --help` lists the method's options, such as "
    "`hf-dfml train tgr --help`; they are those of `recipes/METHOD.py`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(pool_app, name="pool")
app.add_typer(train_app, name="train")

PoolName = Annotated[
    str,
    typer.Argument(help="A folder, a pool.lock.json, a Hub user or organisation, a collection, or ids by comma."),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of local copies of the data sets (else HF_DFML_DATA, else the Hub).")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


@app.command()
def quickstart(
    output_dir: Annotated[
        Path, typer.Option(help="Folder for the pool, the model, its card and its pictures.")
    ] = Path("runs/quickstart"),
    seed: Seed = 42,
) -> None:
    """See it work without network or data: a small pool, meta-learning from it, evaluation, a model and its card."""
    from hf_dfml.quickstart import run_quickstart

    run_quickstart(output_dir, seed)


@pool_app.command("build")
def pool_build(
    output: Annotated[Path, typer.Option(help="Folder of the pool; members already there are kept.")],
    dataset: Annotated[
        str, typer.Option(help="Data set whose training classes the members learn, or several by comma.")
    ] = "glyphs",
    num_models: Annotated[int, typer.Option(help="Members of each data set and architecture.")] = 100,
    arch: Annotated[
        str, typer.Option(help="Architecture: conv4, resnet10, or any timm name; or several by comma.")
    ] = "conv4",
    ways: Annotated[int, typer.Option(help="Classes of each member.")] = 5,
    fast: Annotated[bool, typer.Option(help="15 epochs, one-cycle rate, augmentation: better and quicker.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over a member's images; else the recipe's.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width of the images in pixels; else the data set's own.")
    ] = None,
    data_dir: DataDir = None,
    seed: Seed = 42,
) -> None:
    """Train a pool of small classifiers; an interrupted build goes on with the next unfinished member."""
    from hf_dfml.pool.building.build import build_pool
    from hf_dfml.pool.building.training import PoolRecipe

    members = 0
    kinds = [(name.strip(), network.strip()) for name in dataset.split(",") for network in arch.split(",")]
    for position, (name, network) in enumerate(kinds):
        pool = build_pool(
            name,
            num_models=num_models,
            arch=network,
            ways=ways,
            output=output,
            data_dir=data_dir,
            image_size=image_size,
            # A mirrored glyph may be another glyph.
            recipe=PoolRecipe.fast(flip=name != "glyphs") if fast else None,
            epochs=epochs,
            # Each kind draws classes of its own.
            seed=seed + position,
        )
        members += len(pool)
    typer.echo(f"{counted(members, 'member')} in {output}.")


@pool_app.command("ls")
def pool_ls(pool: PoolName) -> None:
    """List the members: id, architecture, classes, input, accuracy, revision, and why one cannot be used.

    Configs are read, weights are not; `hf-dfml pool check` opens these. Of a served pool (its URL) what it tells.
    """
    from rich.console import Console

    from hf_dfml.pool import ModelPool
    from hf_dfml.pool.black_box.endpoints import is_remote, open_remote
    from hf_dfml.pool.inspection import pool_table

    if is_remote(pool):
        service = open_remote(pool)
        Console().print(pool_table(service))
        typer.echo(f"Black boxes: their answers are {service.output}, and nothing else is known of them.")
        return
    Console().print(pool_table(ModelPool.open(pool)))
    typer.echo("Weights were not opened; `hf-dfml pool check` opens them.")


@pool_app.command("check")
def pool_check(
    pool: PoolName,
    disk_gb: Annotated[
        float | None, typer.Option(help="Disk for the weights of a Hub pool: those used longest ago are deleted.")
    ] = None,
) -> None:
    """Load every member safely and say which are unusable and why; exit code 1 if any is."""
    from hf_dfml.pool import ModelPool
    from hf_dfml.pool.inspection import check_pool

    checked = check_pool(ModelPool.open(pool).with_limits(disk_gb=disk_gb))
    refused = [(entry, problem) for entry, problem in checked if problem]
    for entry, problem in refused:
        typer.echo(f"refused  {entry.id}: {problem}")
    typer.echo(f"{len(checked) - len(refused)} of {counted(len(checked), 'member')} can be used.")
    if refused:
        raise typer.Exit(1)


@pool_app.command("push")
def pool_push(
    pool: PoolName,
    organisation: Annotated[str, typer.Argument(help="Hub user or organisation; each member becomes a repository.")],
    private: Annotated[bool, typer.Option(help="Make new repositories private.")] = False,
) -> None:
    """Publish every member of a local pool; files that are already there are not sent again."""
    from hf_dfml.pool import ModelPool
    from hf_dfml.pool.building.publishing import push_pool

    pushed = push_pool(ModelPool.open(pool), organisation, private=private)
    typer.echo(f"{counted(len(pushed), 'member')} published under {organisation}.")


def train(context: typer.Context) -> None:
    """Run the recipe of the method that the command is called after; its options are read by the recipe's parser."""
    from hf_dfml.arguments import parse
    from hf_dfml.pipeline import run
    from hf_dfml.run_config import RunConfig

    words = ["hf-dfml", "train", str(context.info_name)]
    method = str(context.command.name).replace("-", "_")
    module = import_module(f"hf_dfml.methods.{method}")
    chosen = getattr(module, METHODS[method])
    configs = parse(chosen, RunConfig, context.args, description=module.__doc__, program=" ".join(words))
    run(chosen, *configs, argv=[*words, *context.args])


def _title(method: str) -> str:
    """The first line of a method's file, read without importing it, which takes seconds."""
    file = Path(__file__).parent / "methods" / f"{method}.py"
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or method).splitlines()[0]


for _method in METHODS:
    train_app.command(
        _method.replace("_", "-"),
        help=_title(_method),
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )(train)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a meta-model.")],
    dataset: Annotated[str, typer.Option(help="Data set of the evaluation.")],
    pool: Annotated[str | None, typer.Option(help="Pool for the baselines printed beside the meta-model.")] = None,
    shots: Annotated[list[int], typer.Option(help="Support images a class: --shots 1 5.")] = [1, 5],  # noqa: B006
    ways: Annotated[int, typer.Option(help="Classes of an episode.")] = 5,
    episodes: Annotated[int, typer.Option(help="Number of episodes.")] = 600,
    bn: Annotated[
        str | None,
        typer.Option(help="Batch-norm statistics: support, running or transductive; the model's own by default."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="Head: finetune, prototype, mirrored, linear or icfil (slow); the model's own by default."),
    ] = None,
    split: Annotated[str, typer.Option(help="Classes: validation while you develop, test once at the end.")] = "test",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where results.json goes, beside the rows of earlier evaluations; a local model's by default."
        ),
    ] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
) -> None:
    """Measure mean accuracy and 95 % interval over episodes of classes that no member has seen."""
    from hf_dfml.evaluation import EvaluationProtocol
    from hf_dfml.evaluation.in_runs import evaluate_meta_model
    from hf_dfml.meta_model import MetaModel

    meta = MetaModel.from_pretrained(model)
    own = meta.config.adapt
    adaptation: dict = {"bn": bn or own.bn, "head": head or own.head, "inner_steps": own.steps, "inner_lr": own.lr}
    protocol = EvaluationProtocol(ways=ways, shots=shots, episodes=episodes, seed=seed, split=split, **adaptation)
    folder = output_dir or Path(model if Path(model).is_dir() else ".") / "evaluations"
    evaluate_meta_model(meta, dataset, protocol, folder, pool=pool, data_dir=data_dir)


@app.command()
def adapt(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a meta-model.")],
    support: Annotated[Path, typer.Option(help="Folder with one folder of example images for each class.")],
    query: Annotated[Path, typer.Option(help="An image, or a folder of images, to classify.")],
    head: Annotated[
        str | None,
        typer.Option(help="finetune, prototype, mirrored, linear or icfil; the model's own choice by default."),
    ] = None,
) -> None:
    """Learn new classes from a few pictures of each and classify others."""
    from hf_dfml.pipeline import adapt_to_folder

    for path, label, probability in adapt_to_folder(model, support, query, head=head):
        typer.echo(f"{path}\t{label}\t{probability:.3f}")


@app.command()
def serve(
    pool: PoolName,
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    output: Annotated[
        str, typer.Option(help="What is told of an image: logits, probs, topk or label; nothing else ever is.")
    ] = "probs",
    top_k: Annotated[int, typer.Option(help="Classes that `--output topk` tells.")] = 3,
    token: Annotated[
        str | None,
        typer.Option(help="Bearer token that clients must send.", envvar="HF_DFML_SERVE_TOKEN", show_envvar=True),
    ] = None,
    max_megabytes: Annotated[int, typer.Option(help="Size limit of one request.")] = 32,
) -> None:
    """Serve a pool as prediction-only HTTP endpoints, one a member, until Ctrl-C.

    POST an image file to /models/ID, get [{"label", "score"}]: the Hugging Face inference format. Learn from it
    elsewhere with `hf-dfml train bidf-mkd --pool http://HOST:PORT`. Images come as files, so with 8 bits a channel.
    """
    from hf_dfml.pool import ModelPool
    from hf_dfml.pool.black_box.server import PoolServer

    limits: dict = {"top_k": top_k, "token": token, "max_bytes": max_megabytes << 20}
    with PoolServer(ModelPool.open(pool), host=host, port=port, output=output, **limits) as server:  # type: ignore[arg-type]
        # Set, not left to Python: a process in the background is started with SIGINT ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        members = counted(len(server.pool), "member")
        typer.echo(f"{members} at {server.url}/models, telling {output}. Ctrl-C stops.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("Stopped.")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `hf-dfml`: errors that a user can mend are one sentence, not a traceback."""
    arguments = _spread(list(sys.argv[1:] if argv is None else argv))
    with errors_in_a_sentence("hf-dfml"):
        app(arguments, prog_name="hf-dfml")


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
