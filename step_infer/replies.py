"""What goes back to the client of each trace beside its text, and on which of vLLM's outputs.

Plain data, no vLLM import. A client gets the report that stands on the output which ended its
request, and no other. That is the trace's last output, with two exceptions that live here:

- a stop string ends a request in vLLM's front end; the engine only sees an abort afterwards. So
  every output of a request with stop strings carries the report so far;
- of a request with n > 1 the last child's output alone is read. So it also carries `choices`, the
  reports of all children in the order of the response's choices. With stop strings nobody can tell
  which output will be the last: each carries `choices` with the scores, without the lists.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

from step_infer.live_traces import LiveTrace
from step_infer.wire import ChoiceReport, Report

IMPLICIT_GROUP = "\0"
"""First character of the group of one request's children; no group that a client names has it."""
_CHILD_ID = re.compile(r"(\d+)_(.+)", re.DOTALL)
_EMPTY_FAMILIES = 16


def child_of(request_id: str) -> tuple[int, str] | None:
    """Return a child's number and its parent's id, from `{number}_{parent}`, as vLLM names them.

    None for a request of its own. An id of that form that a user chose makes a family of one,
    which changes nothing.
    """
    match = _CHILD_ID.fullmatch(request_id)
    return (int(match[1]), match[2]) if match else None


class _Family:
    """The children of one request with n > 1."""

    __slots__ = ("brief", "ended", "live", "parent")

    def __init__(self, parent: str) -> None:
        self.parent = parent
        self.live: set[int] = set()
        self.ended: dict[int, ChoiceReport] = {}
        self.brief: dict[int, ChoiceReport] = {}


class _Member:
    """A trace whose report is not just its own, at its own end."""

    __slots__ = ("family", "index", "num_scores", "report", "stops", "trace")

    def __init__(self, trace: LiveTrace, index: int, family: _Family | None, stops: bool) -> None:
        self.trace = trace
        self.index = index
        self.family = family
        self.stops = stops
        self.num_scores = -1
        self.report: Report | None = None


class Reports:
    """The reports of running traces that have siblings or stop strings."""

    def __init__(self, report: Callable[[LiveTrace], Report]) -> None:
        self._report = report
        self._members: dict[str, _Member] = {}
        self.early: set[str] = set()
        """Requests whose every output carries the report so far; `so_far` is for them."""
        self._families: dict[str, _Family] = {}
        self._empty: OrderedDict[str, None] = OrderedDict()

    def add(self, trace: LiveTrace, stops: bool) -> None:
        """Begin to follow a trace; `stops` says that its request has stop strings."""
        child = child_of(trace.request_id)
        if child is None and not stops:
            return
        family, index = None, 0
        if child is not None:
            index, parent = child
            family = self._families.get(parent)
            if family is None or index in family.ended:  # an id used again is another request
                family = self._families[parent] = _Family(parent)
            self._empty.pop(parent, None)
            family.live.add(index)
            family.brief[index] = {"index": index, "score": None, "pruned": False}
        self._members[trace.request_id] = _Member(trace, index, family, stops)
        if stops:
            self.early.add(trace.request_id)

    def so_far(self, request_id: str) -> Report:
        """Return the report for an output that does not end the trace, one of `early`."""
        member = self._members[request_id]
        if len(member.trace.scores) != member.num_scores:
            # vLLM sends outputs from another thread: what was handed over must not change.
            report = self._report(member.trace)
            member.num_scores = len(member.trace.scores)
            copied = {k: list(v) if isinstance(v, list) else v for k, v in report.items()}
            member.report = cast(Report, copied)
            if member.family is not None:
                member.family.brief[member.index]["score"] = report["score"]
        assert member.report is not None
        if "confidence" in member.report:  # changes with every token
            member.report = {**member.report, "confidence": member.trace.confidence}
        return self._with_choices(member, member.report)

    def end(self, request_id: str, report: Report) -> Report:
        """Note a trace's final report; return it as it goes to the client."""
        member = self._members.pop(request_id, None)
        if member is None:
            return report
        self.early.discard(request_id)
        family = member.family
        if family is not None:
            own = {name: value for name, value in report.items() if not name.startswith("hidden")}
            family.ended[member.index] = cast(ChoiceReport, {"index": member.index, **own})
            brief = family.brief[member.index]
            brief["score"], brief["pruned"] = report["score"], report["pruned"]
            family.live.discard(member.index)
            if not family.live and self._families.get(family.parent) is family:
                self._empty[family.parent] = None
        report = self._with_choices(member, report)
        while len(self._empty) > _EMPTY_FAMILIES:  # kept a while: a sibling may still arrive
            del self._families[self._empty.popitem(last=False)[0]]
        return report

    def abort(self, request_id: str) -> None:
        """Note that a trace was ended from outside, perhaps for a stop string; nothing is sent."""
        member = self._members.get(request_id)
        if member is not None:
            self.end(request_id, self._report(member.trace))

    def clear(self) -> None:
        """Forget everything."""
        for table in (self._members, self.early, self._families, self._empty):
            table.clear()  # type: ignore[attr-defined]

    def _with_choices(self, member: _Member, report: Report) -> Report:
        family = member.family
        if family is None or len(family.brief) < 2:
            return report
        if not family.live:
            choices = [family.ended[index] for index in sorted(family.ended)]
        elif member.stops:
            choices = list(family.brief.values())
        else:
            return report
        return {**report, "index": member.index, "choices": choices}
