"""Experiment trackers of a run: TensorBoard, Weights & Biases, Trackio, and whatever else Accelerate knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration

from hf_dfml.settings import flat

PROJECT = "hf_dfml"
"""The project of the runs on a tracker's server."""


def trackers_of(log_with: str) -> list[str]:
    """The trackers that `--log_with` names: one, several by comma, or `none`.

    Raises:
        ValueError: if Accelerate does not know one, or its package is not installed.
    """
    names = [name.strip() for name in log_with.split(",") if name.strip()]
    known = [kind.value for kind in LoggerType if kind != LoggerType.ALL]
    available = [str(kind) for kind in get_available_trackers()]
    for name in names:
        if name != "none" and name not in known:
            raise ValueError(
                f"--log_with {name}: expected none or a tracker that Accelerate knows ({', '.join(known)})."
            )
        if name != "none" and name not in available:
            raise ValueError(
                f"--log_with {name}: the package of this tracker is not installed. Install it (pip install {name}), "
                f"or choose one of none, {', '.join(available)}."
            )
    return [name for name in names if name != "none"]


def hyper_parameters(**settings: Any) -> dict[str, int | float | str | bool]:
    """Dataclasses and values as one flat dictionary that every tracker takes; what is None is left out.

    Examples:
        >>> hyper_parameters(method="TGR", options={"steps": 4, "inner": {"lr": 0.1}, "shots": [1, 5], "probe": None})
        {'method': 'TGR', 'steps': 4, 'inner.lr': 0.1, 'shots': '[1, 5]'}
    """
    found: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        value = flat(value) if is_dataclass(value) and not isinstance(value, type) else value
        if isinstance(value, Mapping):
            found |= _flat(value, "")
        else:
            found |= _flat({name: value}, "")
    return found


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return found


class TrackedAccelerator(Accelerator):
    """Starts its trackers with the first line for them, so that a run that fails before its first step leaves none.

    Args:
        folder: the run's; trackers that write files put them into `logs` there.
        log_with: see `trackers_of`.
        options: those of `Accelerator`.

    Attributes:
        config: what the trackers are given of the run; see `hyper_parameters`.
    """

    def __init__(self, folder: Path | str, log_with: str, **options: Any) -> None:
        folder = Path(folder)
        directories = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs"))
        # Accelerate keeps the precision of a process's first run, and refuses another one.
        AcceleratorState._reset_state()
        super().__init__(log_with=trackers_of(log_with) or None, project_config=directories, **options)
        self.folder = folder
        self.config: dict[str, int | float | str | bool] = {}

    def log(self, values: dict, step: int | None = None, log_kwargs: dict | None = None) -> None:
        """As in the base class."""
        if self.log_with and not self.trackers:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            named = {"name": self.folder.name}
            self.init_trackers(
                PROJECT,
                config=self.config,
                init_kwargs={"wandb": {**named, "dir": str(self.folder / "logs")}, "trackio": named},
            )
        super().log(values, step, log_kwargs or {})
