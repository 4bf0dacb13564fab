"""What the page shows of a server's voted calls, running and lately ended: as JSON texts.

Calls are read only when somebody looks, and then once for all who do.
"""

import json
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any

from step_infer.server.voted_call import RUNNING, WAITING, VotedCall
from step_infer.server.voted_settings import VotedOptions

LOOK_S = 0.25
"""Calls are read again after this long."""
MOST_SHOWN = 50
"""Running calls that are shown: the oldest."""
_KEPT, _KEPT_S = 20, 600.0
"""Ended calls that stay, and for how long."""
_ANSWERS = 8
"""Answers of a call that are told: the heaviest."""
_CHARACTERS = 200
"""Of an answer or a name that are told."""


@dataclass
class Card:
    """One call, as it was when last looked at."""

    number: int
    """From 1, in the order in which calls came."""
    call: VotedCall | None
    """None once it has ended."""
    options: VotedOptions
    text: str = ""
    """Its state as JSON; see `Board.look`."""
    version: int = 0
    """How often the text has changed."""
    began: float | None = None
    """When its first trace began, seconds since 1970."""
    ended_s: float = 0.0
    """When it ended, seconds of `time.monotonic()`."""

    def tell(self, state: dict[str, Any]) -> None:
        """Note a state."""
        text = json.dumps(state)
        if text != self.text:
            self.text, self.version = text, self.version + 1


class Board:
    """The voted calls of a server process."""

    def __init__(self) -> None:
        self._running: dict[VotedCall, Card] = {}
        self._ended: deque[Card] = deque(maxlen=_KEPT)
        self._looked_s = float("-inf")
        self._begun = 0

    def begin(self, call: VotedCall, options: VotedOptions) -> None:
        """Show a call from when its traces begin."""
        self._begun += 1
        self._running[call] = Card(self._begun, call, options)

    def end(self, call: VotedCall, ended: str | None) -> None:
        """Keep how a call ended, and let go of it; one that never began (None) leaves nothing."""
        card = self._running.pop(call)
        if ended is None:
            return
        card.tell(_state(card, call, ended))
        card.call, card.ended_s = None, time.monotonic()
        self._ended.appendleft(card)

    @property
    def running(self) -> int:
        """Calls whose traces have begun and that have not ended."""
        return sum(call.begun.is_set() for call in self._running)

    def look(self) -> list[Card]:
        """Return the cards to show: running calls by age, then ended ones, the last first.

        The text of each is a JSON object:

        - `number`, `id` (vLLM's name of the request, as in the response), `began` (seconds since
          1970), `seconds` (None while it runs), `stop_rule`, `vote`;
        - `state`: running, or how it ended, as in `step_voted_calls_total`; `closed` and `why`:
          "decided" or "over_budget", and the rule or limit, once its traces need not go on;
        - `answer` and `share`, once it has been answered; `best`, the trace that answers;
        - `answers`: the heaviest, each with `answer`, `share` and the number of its `traces`;
        - `traces`: for each trace [N] its `states`, `tokens` so far, `scores` (None before the
          first step) and which of the answers it `gave` (None without one, -1 for one that is not
          among them).
        """
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            begun = (item for item in self._running.items() if item[0].begun.is_set())
            for call, card in islice(begun, MOST_SHOWN):
                card.tell(_state(card, call, RUNNING))
            while self._ended and now_s - self._ended[-1].ended_s > _KEPT_S:
                self._ended.pop()
        running = (card for card in self._running.values() if card.version)
        return [*islice(running, MOST_SHOWN), *self._ended]


def _state(card: Card, call: VotedCall, state: str) -> dict[str, Any]:
    vote, outcome, now_s = call.vote, call.outcome, time.monotonic()
    # Its traces have been ordered before the first of them begins.
    began_s = now_s if vote.began_s is None else vote.began_s
    if card.began is None:
        card.began = round(time.time() - now_s + began_s, 3)
    seconds = now_s - began_s if outcome is None else outcome.seconds
    groups = call.standing() if outcome is None else outcome.vote.groups
    total = sum(weight for _, weight, _ in groups)
    traces = call.traces_so_far()
    gave: list[int | None] = [None] * len(traces)
    for place, (_, _, givers) in enumerate(groups):
        for number in givers:
            gave[number] = place if place < _ANSWERS else -1
    return {
        "number": card.number,
        "id": (call.request_id or "")[:_CHARACTERS],
        "began": card.began,
        "seconds": None if state == RUNNING else round(seconds, 3),
        "stop_rule": card.options.stop_rule,
        "vote": card.options.vote,
        "state": state,
        "closed": vote.closed,
        "why": vote.why,
        "answer": None if outcome is None else _cut(outcome.vote.answer),
        "share": None if outcome is None else outcome.vote.share,
        "best": None if outcome is None else outcome.best.trace_id,
        "answers": [
            {
                "answer": _cut(form),
                "share": round(weight / total, 4) if total > 0 else 0.0,
                "traces": len(givers),
            }
            for form, weight, givers in groups[:_ANSWERS]
        ],
        "traces": {
            "states": [
                trace.state if state == RUNNING or trace.state not in (WAITING, RUNNING) else state
                for trace in traces
            ],
            "tokens": [trace.tokens for trace in traces],
            "scores": [None if t.score is None else round(t.score, 3) for t in traces],
            "gave": gave,
        },
    }


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
