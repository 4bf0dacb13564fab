"""What the scheduler counts: totals since its start, and how much each grew since it was last sent.

Plain data, no vLLM import.
"""

import dataclasses
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from step_infer.wire import CLOSED_REASONS

SUMMARY_INTERVAL_S = 10.0


@dataclasses.dataclass(slots=True)
class Totals:
    """Totals of one scheduler."""

    pruned: int = 0
    """Traces stopped for their score."""
    scored_steps: int = 0
    """Finite step scores."""
    dropped_scores: int = 0
    """Step scores that were missing or not finite."""
    freed_tokens: int = 0
    """Tokens of pruned traces, prompt included, that were computed or in flight."""
    freed_kv_blocks: int = 0
    """KV blocks that pruning made free, a KV connector's delay not counted; blocks that other
    requests share stay in use."""
    held_steps: int = 0
    """Engine steps in which waiting traces were held back for lack of memory."""
    decided: int = 0
    """Traces that a client ended because their question's vote was decided."""
    over_budget: int = 0
    """Traces that a client ended because their question's budget was spent."""
    disabled: int = 0
    """1 once scoring and pruning are off after a failure."""


_NAMES = [field.name for field in dataclasses.fields(Totals)]
_VALUES = attrgetter(*_NAMES)
SCORE_UNIT = 1e-4
"""What new scores are sent in whole numbers of: a server sends them in most of its steps."""


class Counters:
    """The totals, the new step scores, and when the next summary line is due."""

    def __init__(self, keep_scores: bool = False) -> None:
        """`keep_scores`: keep each new score until `take_increments`."""
        self.totals = Totals()
        self.score_sum = 0.0
        self.changed = False
        """Whether something grew since `take_increments` was last called."""
        self._keep_scores = keep_scores
        self._new_scores: list[float] = []
        self._sent = _VALUES(Totals())
        self._summed_up = self._sent
        self._summary_due_s = 0.0

    def score(self, scores: Sequence[float]) -> None:
        """Count finite step scores in [0, 1]."""
        self.changed = True
        self.totals.scored_steps += len(scores)
        self.score_sum += sum(scores)
        if self._keep_scores:
            self._new_scores += scores

    def drop(self, count: int) -> None:
        """Count step scores that were missing or not finite."""
        self.changed = True
        self.totals.dropped_scores += count

    def prune(self, tokens: int, kv_blocks: int) -> None:
        """Count a pruned trace, and what it leaves free."""
        self.changed = True
        self.totals.pruned += 1
        self.totals.freed_tokens += tokens
        self.totals.freed_kv_blocks += kv_blocks

    def close(self, reason: str) -> None:
        """Count a trace that its client ended for a reason, one of `CLOSED_REASONS`."""
        if reason in CLOSED_REASONS:
            self.changed = True
            setattr(self.totals, reason, getattr(self.totals, reason) + 1)

    def hold(self) -> None:
        """Count an engine step in which traces were held back."""
        self.changed = True
        self.totals.held_steps += 1

    def disable(self) -> None:
        """Note that scoring and pruning are off."""
        self.changed = True
        self.totals.disabled = 1

    def take_increments(self) -> dict[str, Any]:
        """Return what each total grew by since the last call, and new scores in `SCORE_UNIT`."""
        increments: dict[str, Any] = _difference(self.totals, self._sent)
        if self._new_scores:
            increments["scores"] = [int(score / SCORE_UNIT + 0.5) for score in self._new_scores]
            self._new_scores.clear()
        self._sent = _VALUES(self.totals)
        self.changed = False
        return increments

    def summary(self, now_s: float) -> str | None:
        """Return a line on all totals; None where nothing is new or the last line is too young.

        Args:
            now_s: seconds of `time.monotonic()`; infinity takes any age.
        """
        new = _difference(self.totals, self._summed_up) if now_s >= self._summary_due_s else None
        if not new:
            return None
        self._summary_due_s = now_s + SUMMARY_INTERVAL_S
        totals = self.totals
        self._summed_up = _VALUES(totals)
        line = (
            f"Step scoring: {totals.scored_steps:,} steps scored "
            f"(+{new.get('scored_steps', 0):,}), {totals.pruned:,} traces pruned "
            f"(+{new.get('pruned', 0):,}), which freed {totals.freed_tokens:,} tokens and "
            f"{totals.freed_kv_blocks:,} KV blocks"
        )
        if totals.scored_steps:
            line += f", mean step score {self.score_sum / totals.scored_steps:.2f}"
        if totals.decided:
            line += f", {totals.decided:,} traces ended as their vote was decided"
        if totals.over_budget:
            line += f", {totals.over_budget:,} traces ended over their budget"
        if totals.held_steps:
            line += f", traces held back in {totals.held_steps:,} engine steps"
        if totals.dropped_scores:
            line += f", {totals.dropped_scores:,} scores dropped"
        return line + ("; it is OFF after a failure." if totals.disabled else ".")


def _difference(totals: Totals, old: tuple[int, ...]) -> dict[str, int]:
    """Return by how much each total grew, without those that did not."""
    pairs = zip(_NAMES, _VALUES(totals), old, strict=True)
    return {name: new - before for name, new, before in pairs if new != before}
