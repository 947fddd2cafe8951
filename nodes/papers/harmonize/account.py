"""Whether a swap acted in a sampling run, and if not, why: said at the sampler."""
from __future__ import annotations

from torch import Tensor

from ...notice import notice

NOT_ACTED = "Self-Attention Swap did not act: "
NOT_EVERYWHERE = "Self-Attention Swap did not act everywhere: "
PAST_THE_GUIDER = ("the sampler calls the model past its guider, where no second picture can follow; choose another "
                   "sampler.")
BRANCH_NOT_COMPUTED = ("another node has not let its second picture be computed in a step; take out the node that "
                       "skips steps or replaces the model's call.")
CUT_INTO_TILES = ("another node cuts the picture into tiles without telling which; take that node out, or let the "
                  "sampler work on the whole picture.")
OTHER_ROWS = ("another node changes the batch inside the model, so that pictures cannot be told apart; take that node "
              "out.")
NO_ATTENTION = ("its run ended before the model had shown where the subject is; sample more steps at a time, connect a "
                "mask, or set where to 'everywhere'.")
EMPTY_MASK = "its mask is empty."
NOT_REACHED = ("another node replaces the blocks that hold the self-attention, or merges their pixels; take that node "
               "out.")


def no_step_between(count: int) -> str:
    """Sentence for a run of so many steps, none of which is to be swapped."""
    return (f"{NOT_ACTED}of this run's {count} steps none begins between start_percent and end_percent. Sample "
            "more steps, or move them.")


class Account:
    """What a run saw. swapped: whether anything was."""

    def __init__(self):
        self.swapped = False
        self._seen = self._shown = False
        self._hindrances: dict[str, None] = {}

    def saw_mask(self, mask: Tensor | None) -> None:
        """The mask of a step that is to be swapped; None without one."""
        self._seen |= mask is not None
        self._shown |= mask is not None and bool(mask.any())

    def hindered(self, why: str) -> None:
        """Something could not be swapped."""
        self._hindrances[why] = None

    def say(self) -> None:
        """At the end of the run."""
        if self._hindrances:
            notice((NOT_EVERYWHERE if self.swapped else NOT_ACTED) + next(iter(self._hindrances)))
        elif not self.swapped:
            notice(NOT_ACTED + (NO_ATTENTION if not self._seen else NOT_REACHED if self._shown else EMPTY_MASK))
