"""Writes docs/results.md from the result files in docs/results.

    python benchmarks/make_results.py

Each `docs/results/NAME.json` is a `results.json` that a recipe, `quickstart` or `hf-dfml evaluate` wrote;
`NAME.md` beside it says on which machine it was obtained, how long it took and what there is to say about it.
"""

from pathlib import Path

from hf_dfml.evaluation import markdown_table, read_results

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# Results

Made by `python benchmarks/make_results.py` from the files in `docs/results`; not edited by hand.

Every row names its head and its batch norm (`bn`: `support` statistics of the support set, `running` stored ones,
`transductive` all queries normalised together). Checkpoints are chosen on the validation classes; the test classes are
looked at once. "sees data" marks references that are allowed real training images.
"""


def section(path: Path) -> str:
    """The part of the page about one result file."""
    results = read_results(path)
    note = path.with_suffix(".md")
    commands = "\n".join(dict.fromkeys(result.command for result in results))
    text = note.read_text().strip() if note.is_file() else f"## {path.stem}"
    return f"{text}\n\n```\n{commands}\n```\n\n{markdown_table(results)}\n"


def main() -> None:
    """Write the page."""
    files = sorted((DOCS / "results").glob("*.json"))
    (DOCS / "results.md").write_text("\n".join([HEAD, *(section(path) for path in files)]))
    print(f"Wrote {DOCS / 'results.md'} from {len(files)} result files.")


if __name__ == "__main__":
    main()
