"""What `mechanisms.py` can be told."""

from __future__ import annotations

from dataclasses import replace

from hf_dfml.settings import Settings, option

MECHANISMS = ("bell", "grouping", "purer", "gamma", "igr")
"""The longest first, so that two processes end together."""


class Options(Settings):
    """What is measured, and how much of it."""

    pool: str = option("", "A pool of members of one architecture; else a small one of glyphs, built when missing.")
    dataset: str = option("glyphs", "Data set whose validation classes the accuracies are on.")
    data_dir: str | None = option(None, "Folder of local copies of the data sets.")
    only: list[str] = option(list(MECHANISMS), "Which mechanisms.", choices=MECHANISMS)
    members: int = option(60, "Members that are used.", least=2)
    epochs: int = option(16, "FREE's epochs after the warm-up, and as many with each form of BELL.", least=1)
    draws: int = option(12, "Draws of four tasks for BELL's direction.", least=2)
    gammas: list[float] = option([0.5, 2.0, 10.0, 50.0], "DRO's prices.")
    dro_epochs: int = option(20, "DRO's epochs.", least=1)
    embedded: int = option(24, "Members that are embedded for the grouping.", least=4)
    embedded_images: int = option(10, "Images of each class for an embedding.", least=1)
    groups: int = option(5, "Groups, as in TGR.", least=2)
    probe: str = option("average", "Network that embeds: a folder, a timm model with weights, or `average`.")
    probe_size: int = option(64, "Height and width at which it sees images.", least=0)
    real_images: bool = option(False, "Real images of the members' training classes beside, as an upper guide.")
    mixed: str = option(
        "pools/mechanisms-mixed", "Folder of a small pool of several architectures; built when missing."
    )
    purer_steps: int = option(60, "PURER's steps before the curriculum begins, and again with it.", least=1)
    episodes: int = option(150, "Episodes of an accuracy.", least=2)
    icfil_episodes: int = option(40, "Episodes with and without ICFIL.", least=2)
    quick: bool = option(False, "So little of everything that it only shows that it runs.")
    pictures: str = option("", "Folder for the figures; none without.")
    output_dir: str = option("", "Folder for results.json (rows of accuracies) and mechanisms.md.")
    seed: int = option(0, "Seed of everything random.")
    num_threads: int = option(1, "CPU threads of each process.", least=0)
    processes: int = option(1, "Mechanisms that are measured side by side, each in a process of its own.", least=1)

    @property
    def shortened(self) -> Options:
        """With a little of everything, if it is to be quick."""
        if not self.quick:
            return self
        few = {"epochs": 1, "draws": 2, "dro_epochs": 1, "purer_steps": 2, "episodes": 2, "icfil_episodes": 2}
        return replace(self, members=4, gammas=[0.5, 10.0], embedded_images=2, groups=2, probe_size=0, **few)
