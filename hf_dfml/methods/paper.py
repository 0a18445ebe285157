"""Where a method comes from, as data: the card, `docs/papers.md` and tables are made from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """The publication that describes a method.

    Attributes:
        title: as printed.
        authors: names in the order of the paper, separated by commas.
        venue: conference or journal; `arXiv` for a preprint.
        year: of the publication.
        arxiv: identifier, such as `2405.00984`; None where there is none.

    Examples:
        >>> Paper("Reptile", "Alex Nichol, John Schulman", "arXiv", 2018, "1803.02999").citation
        'Alex Nichol, John Schulman. Reptile. arXiv 2018, arXiv 1803.02999'
    """

    title: str
    authors: str
    venue: str
    year: int
    arxiv: str | None = None

    @property
    def citation(self) -> str:
        """One line that names the paper."""
        where = f"{self.venue} {self.year}" + (f", arXiv {self.arxiv}" if self.arxiv else "")
        return f"{self.authors}. {self.title}. {where}"
