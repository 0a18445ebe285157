"""`hf-dfml pool`: build, add to, list, check, draw and publish pools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hf_dfml.cli.options import AsJson, DataDir, PoolName, Seed
from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    from hf_dfml.pool.building.training import PoolRecipe

pool_app = typer.Typer(
    help="Build, list, check, draw and publish pools of pretrained classifiers.", no_args_is_help=True
)


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
    ways: Annotated[str, typer.Option(help="Classes of each member: a number, or a range such as 2-20.")] = "5",
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="Fine-tune members from this network: a folder, a Hub id or a timm name; --arch is its own."
        ),
    ] = None,
    train: Annotated[
        Literal["head", "last_stage", "all"], typer.Option(help="What of that network is trained.")
    ] = "all",
    fast: Annotated[
        bool, typer.Option(help="15 epochs, one-cycle learning rate, augmentation: better and quicker.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over a member's images; else the recipe's.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width of the images in pixels; else the data set's own.")
    ] = None,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, mps.")] = "cpu",
    seed: Seed = 42,
) -> None:
    """Train a pool of classifiers, from scratch or from a public network; an interrupted one goes on."""
    from hf_dfml.pool.building.build import build_pool

    if from_ and fast:
        raise ValueError("--fast is a recipe for members from scratch, and --from fine-tunes: leave one of them out.")
    if train != "all" and not from_:
        raise ValueError(f"--train {train} is about the network of --from: name one, or leave --train out.")
    members = 0
    kinds = [(name.strip(), network.strip()) for name in dataset.split(",") for network in arch.split(",")]
    for position, (name, network) in enumerate(kinds):
        pool = build_pool(
            name,
            num_models=num_models,
            arch=network,
            ways=_ways(ways),
            backbone=from_,
            trained=train,
            output=output,
            data_dir=data_dir,
            image_size=image_size,
            recipe=_recipe(name, fast=fast, fine_tuned=from_ is not None),
            epochs=epochs,
            # Each kind draws classes of its own.
            seed=seed + position,
            device=device,
        )
        members += len(pool)
    typer.echo(f"{counted(members, 'member')} in {output}.")


def _recipe(dataset: str, *, fast: bool, fine_tuned: bool) -> PoolRecipe | None:
    from hf_dfml.pool.building.training import PoolRecipe

    flip = dataset != "glyphs"  # A mirrored glyph may be another glyph.
    if fine_tuned:
        return PoolRecipe.fine_tuning(flip=flip)
    return PoolRecipe.fast(flip=flip) if fast else None


def _ways(text: str) -> int | tuple[int, int]:
    least, dash, most = text.partition("-")
    if not (least.isdecimal() and (most.isdecimal() if dash else not most)):
        raise ValueError(f"--ways {text}: expected a number of classes, or a range such as 2-20.")
    return (int(least), int(most)) if dash else int(least)


@pool_app.command("add")
def pool_add(
    weights: Annotated[Path, typer.Argument(help="State dict of a trained network: .safetensors, .pt or .pth.")],
    arch: Annotated[str, typer.Option(help="Its architecture: a timm name, conv4, resnet10, or a torchvision name.")],
    labels: Annotated[
        str, typer.Option(help="Class names in the order of the outputs, by comma; or a .txt or .json file of them.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the pool that the member is added to.")],
    id: Annotated[str | None, typer.Option(help="Name of the member; else that of the file.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width that it was trained on, in pixels.")] = None,
    mean: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Mean of the channels, of pixels in [0, 1].")
    ] = None,
    std: Annotated[tuple[float, float, float] | None, typer.Option(help="Standard deviation of the channels.")] = None,
) -> None:
    """Make a pool member of a state dict; it is loaded and compared with the network before it is there.

    Size, mean and std are those of the architecture in timm unless they are given: a network answers wrongly on images
    that are normalised otherwise than those that it was trained on.
    """
    from hf_dfml.pool.building.conversion import add_member, read_labels

    sizes: dict = {"image_size": image_size, "mean": mean, "std": std}
    entry = add_member(weights, arch=arch, labels=read_labels(labels), output=output, id=id, **sizes)
    typer.echo(f"{entry.id}: {entry.architecture}, {entry.num_classes} classes, in {output / entry.id}.")


@pool_app.command("ls")
def pool_ls(
    pool: PoolName,
    classes: Annotated[
        bool, typer.Option("--classes", help="List the classes instead, and the members that know each.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the members: id, architecture, classes, input, accuracy, revision, and why one cannot be used.

    Configs are read, weights are not; `hf-dfml pool check` opens these. Of a served pool (its URL) what it returns.
    """
    from rich.console import Console

    from hf_dfml.pool import open_pool, pool_table
    from hf_dfml.pool.inspection import class_table, pool_as_json
    from hf_dfml.pool.names import NAME_RULE

    members = open_pool(pool)
    if as_json:  # Its members have their classes: `--classes` adds nothing.
        typer.echo(json.dumps({"pool": pool, **pool_as_json(members)}))
        return
    if classes:
        Console().print(class_table(members))
        typer.echo(f"Classes of different members are one class where their names are the same: {NAME_RULE}.")
        return
    Console().print(pool_table(members))
    if members.answers_only:
        typer.echo(f"Black boxes: their answers are {members.output}, and nothing else is known of them.")
    else:
        typer.echo("Weights were not opened; `hf-dfml pool check` opens them.")


@pool_app.command("check")
def pool_check(
    pool: PoolName,
    disk_gb: Annotated[
        float | None, typer.Option(help="Disk for the weights of a Hub pool: those used longest ago are deleted.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load every member safely, classify images with it, say which are unusable and why; exit code 1 if any is.

    Members that answer alike to every image, are sure of everything, are copies or contradict the others are refused
    as well: a run leaves them out. Those that may never have been trained are named, and may be used.
    """
    from hf_dfml.pool import ModelPool
    from hf_dfml.pool.inspection import check_pool
    from hf_dfml.recovery.soundness import doubtful_members, unsound_members
    from hf_dfml.utils.seeding import fork

    members = ModelPool.open(pool).with_limits(disk_gb=disk_gb)
    checked = check_pool(members)
    loaded = {entry.id for entry, problem in checked if not problem}
    unsound: dict[str, str] = {}
    if len(loaded) > 1:
        unsound = unsound_members(members.filter(lambda entry: entry.id in loaded), fork(42, "soundness"))
    checked = [(entry, problem or unsound.get(entry.id)) for entry, problem in checked]
    sound = members.filter(lambda entry: entry.id in loaded - unsound.keys())
    doubts = doubtful_members(sound, fork(42, "soundness")) if len(sound) else {}
    refused = [(entry, problem) for entry, problem in checked if problem]
    usable = len(checked) - len(refused)
    if as_json:
        found = [
            {"id": entry.id, "usable": not problem, "problem": problem, "doubt": doubts.get(entry.id)}
            for entry, problem in checked
        ]
        typer.echo(json.dumps({"pool": pool, "usable": usable, "members": found}))
    else:
        for entry, problem in refused:
            typer.echo(f"refused  {entry.id}: {problem}")
        for id, doubt in doubts.items():
            typer.echo(f"in doubt {id}: {doubt}")
        typer.echo(f"{usable} of {counted(len(checked), 'member')} can be used.")
    if refused:
        raise typer.Exit(1)


@pool_app.command("map")
def pool_map(
    pool: PoolName,
    output: Annotated[Path, typer.Option(help="The PNG file.")] = Path("pool_map.png"),
) -> None:
    """Draw the members as a map: near each other where they know the same classes, coloured by their data set.

    Configs are read, weights are not. In the title are the members and how many classes they know together.
    """
    from hf_dfml.pool import open_pool
    from hf_dfml.pool.inspection import draw_map

    typer.echo(f"Wrote the map to {draw_map(open_pool(pool), output)}.")


@pool_app.command("push")
def pool_push(
    pool: PoolName,
    organisation: Annotated[str, typer.Argument(help="Hub user or organisation; each member becomes a repository.")],
    private: Annotated[bool, typer.Option(help="Make new repositories private.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option(help="Replace what repositories of these names hold: other members or models, and README files."),
    ] = False,
) -> None:
    """Publish every member of a local pool; files that are already there are not sent again."""
    from hf_dfml.pool import ModelPool
    from hf_dfml.pool.building.publishing import push_pool

    pushed = push_pool(ModelPool.open(pool), organisation, private=private, overwrite=overwrite)
    typer.echo(f"{counted(len(pushed), 'member')} published under {organisation}.")
