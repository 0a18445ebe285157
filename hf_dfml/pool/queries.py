"""What black boxes return, how many images they were sent, the budget of a run, and the errors of asking."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from hf_dfml.utils.checkpoint import Tree

Output = Literal["logits", "probs", "topk", "label"]
"""The kinds of answers; see `hf_dfml.pool.black_box.pool`."""


class QueryBudgetError(RuntimeError):
    """More images were about to be sent to black boxes than is allowed; none of them was sent.

    Attributes:
        spent: images sent so far.
        asked: images that were about to be sent.
        allowed: the budget.
    """

    def __init__(self, spent: int, asked: int, allowed: int) -> None:
        super().__init__(
            f"the budget of {allowed:,} queries does not suffice: {spent:,} images were sent and {asked:,} more are "
            "wanted (allow more with --max_queries, or want fewer: directions, recovery steps, images a class)"
        )
        self.spent, self.asked, self.allowed = spent, asked, allowed


class ServiceError(ConnectionError):
    """A black box behind HTTP that does not answer, or not in an expected way."""


class RefusedError(ServiceError):
    """A service that answers with an error which repeating the request does not mend.

    Attributes:
        status: the HTTP status code.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class QueryCount:
    """How many images each member was sent, and how many all of them may be sent together.

    Attributes:
        allowed: the budget; None for no limit.
        members: images sent to each member, by its id.
        cached: images that need not be sent, as their answers were known already; they are in no other count.
    """

    allowed: int | None = None
    members: Counter[str] = field(default_factory=Counter)
    cached: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Images sent so far."""
        return self.members.total()

    def allows(self, count: int) -> bool:
        """Whether the budget has `count` more images."""
        return self.allowed is None or self.total + count <= self.allowed

    def require(self, count: int) -> None:
        """Check before a piece of work that the budget allows `count` more images.

        Raises:
            QueryBudgetError: if it does not.
        """
        if self.allowed is not None and not self.allows(count):
            raise QueryBudgetError(self.total, count, self.allowed)

    def spend(self, member: str, count: int) -> None:
        """Count `count` images that are about to be sent to a member.

        Raises:
            QueryBudgetError: if they are more than is allowed; they are not counted then.
        """
        self.require(count)
        self.members[member] += count

    def state_dict(self) -> Tree:
        """The images sent, without the budget: a resumed run may have a larger one."""
        return dict(self.members)

    def load_state_dict(self, state: Tree) -> None:
        """Take over what `state_dict` gave; what was sent in between stays counted."""
        self.members = Counter({name: max(state.get(name, 0), self.members[name]) for name in {*state, *self.members}})
