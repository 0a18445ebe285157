"""The plateau switch of PURER's curriculum and of BiDf-MKD's next visit to a teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass
class PlateauSwitch:
    """Is on for one step whenever the accuracy has not improved on its phase's best for `patience` steps.

    PURER (Hu et al., CVPR 2023) harvests harder images at such a step (its gradient switch), BiDf-MKD (Hu et al., ICML
    2023) asks the next API. A phase ends when the switch is on; the next one starts without a best accuracy. The
    steps without improvement need not follow one another, only no accuracy of the phase may lie above its best.

    Attributes:
        patience: steps without improvement that end a phase.
        warm_up: the first so many steps are not looked at; the switch is on at the first step after them.
        longest: a phase ends after so many steps at the latest; 0: never for that reason.

    Examples:
        >>> switch = PlateauSwitch(patience=2)
        >>> on = []
        >>> for step, accuracy in enumerate([0.2, 0.3, 0.3, 0.3, 0.9]):
        ...     on.append(switch.take(step))
        ...     switch.observe(step, accuracy)
        >>> on
        [True, False, False, False, True]
    """

    patience: int
    warm_up: int = 0
    longest: int = 0
    best: float = field(default=-1.0, init=False)
    waited: int = field(default=0, init=False)
    seen: int = field(default=0, init=False)
    due: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"A plateau of {self.patience} steps: expected a patience of at least 1.")

    def take(self, step: int) -> bool:
        """Whether the switch is on at `step` (0, 1, ...). If it is, a new phase begins."""
        on = self.due or step == self.warm_up
        if on:
            self.best, self.waited, self.seen, self.due = -1.0, 0, 0, False
        return on

    def observe(self, step: int, accuracy: float) -> None:
        """Note the accuracy in [0, 1] that `step` ended with."""
        if step < self.warm_up:
            return
        self.waited = 0 if accuracy > self.best else self.waited + 1
        self.best = max(self.best, accuracy)
        self.seen += 1
        self.due = self.waited >= self.patience or 0 < self.longest <= self.seen

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on from."""
        return {name: value for name, value in asdict(self).items() if name in ("best", "waited", "seen", "due")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what `state_dict` gave."""
        self.best, self.waited = float(state["best"]), int(state["waited"])
        self.seen, self.due = int(state["seen"]), bool(state["due"])
