"""`hf-dfml adapt` and `hf-dfml classify`: a classifier of new classes, and its answers to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_dfml.cli.options import Flips, HeadName, Representation
from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    from hf_dfml.classifier import Classifier

Output = Annotated[Path | None, typer.Option(help="A .csv or .json file for the answers, in place of the screen.")]
TopK = Annotated[
    int, typer.Option(min=1, help="Labels of each picture, the most probable first; all, where there are fewer.")
]
Threshold = Annotated[float, typer.Option(min=0, max=1, help='Probability below which a picture is "none of these".')]
Device = Annotated[str, typer.Option(help="Where the work is done, such as cuda.")]


def adapt(
    model: Annotated[
        str,
        typer.Argument(
            help="A meta-model, a member of a pool, or a whole pool: folder, Hub id, or zoo:NAME (`hf-dfml zoo`)."
        ),
    ],
    support: Annotated[Path, typer.Option(help="Folder with one folder of example images for each class.")],
    query: Annotated[
        list[Path] | None,
        typer.Option(help="Images, or folders of images, to classify: --query a b."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Folder for the classifier, in place of one that is there; `hf-dfml classify` reads it."),
    ] = None,
    head: HeadName = None,
    flips: Flips = None,
    representation: Representation = None,
    bn: Annotated[
        str | None, typer.Option(help="Batch-norm statistics: support, running or transductive; the model's own else.")
    ] = None,
    output: Output = None,
    top_k: TopK = 1,
    threshold: Threshold = 0.0,
    picture: Annotated[
        Path | None, typer.Option(help="A .png file: where the network puts the example images and the queries.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Learn new classes from a few pictures of each; classify others, keep the classifier, or both.

    Says on standard error how many of the example images are classified correctly by what is learnt from the others.
    """
    from hf_dfml.adapting import adapt as learn
    from hf_dfml.classifier.answers import check_output, estimate
    from hf_dfml.classifier.files import check_folder
    from hf_dfml.evaluation.heads import find_head

    if output:
        check_output(output)
    if not query and (output or top_k != 1 or threshold):
        raise ValueError(
            "--output, --top_k and --threshold are about the answers to --query: name images, or leave them out."
        )
    if save:
        check_folder(save)
    how = {"head": find_head(head), "flips": flips and flips == "true", "representation": representation, "bn": bn}
    classifier = learn(model, support, device=device, **how)  # type: ignore[arg-type]
    _say(estimate(classifier))
    if save:
        classifier.save_pretrained(save)
        _say(f"Wrote the classifier and its card to {save}: hf-dfml classify {save} PHOTOS")
    if query:
        _answer(classifier, query, output, top_k, threshold)
    if picture:
        from hf_dfml.classifier.picture import draw_features

        _say(f"Wrote the picture to {draw_features(classifier, picture, query or ())}.")


def classify(
    classifier: Annotated[str, typer.Argument(help="Folder or Hub id of a classifier (`hf-dfml adapt --save`).")],
    photos: Annotated[list[Path], typer.Argument(help="Images, or folders of images; sub-folders are not searched.")],
    output: Output = None,
    top_k: TopK = 1,
    threshold: Threshold = 0.0,
    device: Device = "cpu",
) -> None:
    """Classify pictures with a stored classifier.

    Files of a folder that cannot be read are left out and named; a file that you name yourself must be readable.
    """
    from hf_dfml.classifier import Classifier
    from hf_dfml.classifier.answers import check_output

    if output:
        check_output(output)
    _answer(Classifier.from_pretrained(classifier, device=device), photos, output, top_k, threshold)


def _answer(classifier: Classifier, queries: list[Path], output: Path | None, top_k: int, threshold: float) -> None:
    from hf_dfml.classifier.answers import lines, write_answers
    from hf_dfml.utils.inputs import not_searched

    found = classifier.classify(queries, top_k=top_k, threshold=threshold)
    if output:
        write_answers(output, found)
        _say(f"Wrote the answers to {counted(len(found.answers), 'image')} to {output}.")
    else:
        for line in lines(found.answers):
            typer.echo(line)
    if found.left_out:
        _say(f"Left out {counted(len(found.left_out), 'file')}:")
        for reason in found.left_out.values():
            _say(f"  {reason}")
    if found.sub_folders:
        _say(f"{not_searched(found.sub_folders)}. To classify their images, name them too.")


def _say(text: str) -> None:
    """To people, beside the answers on standard output."""
    typer.echo(text, err=True)
