"""Writes docs/results.md from the result files in docs/results.

    python benchmarks/make_results.py

Each `docs/results/NAME.json` is a `results.json` that a recipe, `quickstart` or `hf-dfml evaluate` wrote;
`NAME.md` beside it says on which machine it was obtained, how long it took and what there is to say about it. A
`NAME.md` alone is about a measurement that is no evaluation, and has its own table and command.
"""

import argparse
from pathlib import Path

from hf_dfml.evaluation import markdown_table, read_results

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# Results

Made by `python benchmarks/make_results.py` from the files in `docs/results`; not edited by hand.

Every row names its head and its batch norm (`bn`: `support` statistics of the support set, `running` stored ones,
`transductive` all queries normalised together). Checkpoints are chosen on the validation classes, and the test classes
are looked at once; where a section did otherwise it says so. "sees data" marks references that are allowed real
training images. Fine-tuning rows name steps and learning rate; `(papers)` are the papers' 10 x 0.01. The pool of
CIFAR-FS is of 100 conv4 members trained for 15 epochs with a one-cycle learning rate, flips and shifts (mean accuracy
.848): they are stronger than the papers'.
"""


def section(name: str) -> str:
    """The part of the page about one measurement."""
    path, note = (DOCS / "results" / f"{name}.{suffix}" for suffix in ("json", "md"))
    if not path.is_file():
        return note.read_text()
    results = read_results(path)
    commands = "\n".join(dict.fromkeys(result.command for result in results))
    text = note.read_text().strip() if note.is_file() else f"## {path.stem}"
    return f"{text}\n\n```\n{commands}\n```\n\n{markdown_table(results)}\n"


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    names = sorted({path.stem for suffix in ("json", "md") for path in (DOCS / "results").glob(f"*.{suffix}")})
    (DOCS / "results.md").write_text("\n".join([HEAD, *map(section, names)]))
    print(f"Wrote {DOCS / 'results.md'} from {len(names)} measurements.")


if __name__ == "__main__":
    main()
