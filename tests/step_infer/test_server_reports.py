"""Reports of traces with siblings (n > 1) or stop strings: which output carries what."""

import pytest

from step_infer.live_traces import LiveTraces
from step_infer.replies import Reports, child_of
from step_infer.scorer.boundary import BoundaryRule
from step_infer.settings import RequestOptions, StepSettings

RULE = BoundaryRule("blank_line", frozenset({1}), None, pattern="\n\n")
PARENT = "cmpl-x-0-0123abcd"


class Server:
    """Traces and their reports, as the scheduler keeps them."""

    def __init__(self) -> None:
        self.live = LiveTraces(RULE, "mean", StepSettings(boundary=RULE.to_dict()))
        self.reports = Reports(self.live.report)

    def add(self, request_id, stops=False, score=None):
        self.live.add(request_id, RequestOptions())
        self.reports.add(self.live.traces[request_id], stops)
        if score is not None:
            self.score(request_id, score)

    def score(self, request_id, score):
        trace = self.live.traces[request_id]
        trace.positions.append(len(trace.positions))
        trace.add_score(score)

    def end(self, request_id, pruned=False):
        report = {**self.live.report(self.live.traces[request_id]), "pruned": pruned}
        self.live.remove(request_id, survived=not pruned)
        return self.reports.end(request_id, report)

    def abort(self, request_id):
        self.live.remove(request_id, survived=False)
        self.reports.abort(request_id)

    @property
    def size(self):
        reports = self.reports
        tables = (reports._members, reports.early, reports._families, reports._empty)
        return sum(len(table) for table in tables)


@pytest.fixture
def server():
    return Server()


def test_a_childs_id_is_its_number_and_its_parent():
    assert child_of(f"12_{PARENT}") == (12, PARENT)
    assert child_of(PARENT) is None
    assert child_of("chatcmpl-3_4") is None


def test_a_lone_trace_reports_itself(server):
    server.add("a", score=0.25)
    assert not server.reports.early
    assert server.end("a") == {
        "positions": [0],
        "scores": [0.25],
        "score": 0.25,
        "pruned": False,
    }
    assert server.size == 0


def test_the_last_child_reports_all_in_the_order_of_choices(server):
    for index, score in enumerate((0.2, 0.4, 0.6)):
        server.add(f"{index}_{PARENT}", score=score)
    assert "choices" not in server.end(f"2_{PARENT}")
    assert "choices" not in server.end(f"0_{PARENT}", pruned=True)
    report = server.end(f"1_{PARENT}")
    assert report["index"] == 1
    assert report["score"] == 0.4
    choices = report["choices"]
    assert [(c["index"], c["score"], c["pruned"]) for c in choices] == [
        (0, 0.2, True),
        (1, 0.4, False),
        (2, 0.6, False),
    ]
    assert all(c["positions"] == [0] and c["scores"] == [c["score"]] for c in choices)


def test_choices_are_in_order_of_number_not_of_text(server):
    for index in range(12):
        server.add(f"{index}_{PARENT}")
    for index in reversed(range(12)):
        report = server.end(f"{index}_{PARENT}")
    assert [c["index"] for c in report["choices"]] == list(range(12))


def test_an_aborted_child_stands_among_the_choices(server):
    server.add(f"0_{PARENT}", score=0.1)
    server.add(f"1_{PARENT}", score=0.9)
    server.abort(f"0_{PARENT}")
    assert [c["score"] for c in server.end(f"1_{PARENT}")["choices"]] == [0.1, 0.9]


def test_with_stop_strings_every_output_reports_so_far(server):
    server.add("a", stops=True)
    assert server.reports.early == {"a"}
    assert server.reports.so_far("a")["score"] is None
    server.score("a", 0.5)
    first = server.reports.so_far("a")
    server.score("a", 0.7)
    assert first["scores"] == [0.5], "what was handed over must not change"
    assert server.reports.so_far("a")["scores"] == [0.5, 0.7]
    server.abort("a")
    assert server.size == 0


def test_with_stop_strings_every_childs_output_has_every_score(server):
    server.add(f"0_{PARENT}", stops=True, score=0.3)
    server.add(f"1_{PARENT}", stops=True, score=0.5)
    server.reports.so_far(f"0_{PARENT}")
    report = server.reports.so_far(f"1_{PARENT}")
    assert report["scores"] == [0.5]
    assert report["choices"] == [
        {"index": 0, "score": 0.3, "pruned": False},
        {"index": 1, "score": 0.5, "pruned": False},
    ]


def test_captured_states_are_not_repeated_in_choices():
    server = Server()
    for index in range(2):
        server.add(f"{index}_{PARENT}")
        server.live.traces[f"{index}_{PARENT}"].capture = True
    server.end(f"0_{PARENT}")
    report = server.end(f"1_{PARENT}")
    assert "hidden" in report
    assert all("hidden" not in choice for choice in report["choices"])


def test_a_child_that_arrives_after_its_siblings_end_still_joins_them(server):
    server.add(f"0_{PARENT}", score=0.2)
    server.end(f"0_{PARENT}")
    server.add(f"1_{PARENT}", score=0.4)
    assert [c["score"] for c in server.end(f"1_{PARENT}")["choices"]] == [0.2, 0.4]


def test_a_request_id_used_again_starts_anew(server):
    for score in (0.2, 0.4):
        for index in range(2):
            server.add(f"{index}_{PARENT}", score=score)
        server.end(f"0_{PARENT}")
        report = server.end(f"1_{PARENT}")
        assert [c["score"] for c in report["choices"]] == [score, score]


def test_an_id_used_again_while_a_sibling_runs_leaves_the_old_requests_end_alone(server):
    for index in range(2):
        server.add(f"{index}_{PARENT}", score=0.2)
    server.end(f"0_{PARENT}")
    server.add(f"0_{PARENT}", score=0.4)
    server.end(f"1_{PARENT}")  # of the old request

    def go_on():
        for number in range(20):
            server.add(f"0_{number}")
            server.end(f"0_{number}")

    go_on()
    server.add(f"1_{PARENT}", score=0.6)
    server.end(f"0_{PARENT}")
    assert [c["score"] for c in server.end(f"1_{PARENT}")["choices"]] == [0.4, 0.6]
    go_on()
    assert server.size <= 2 * 17


def test_memory_does_not_grow_with_finished_requests(server):
    sizes = set()
    for number in range(2000):
        for index in range(3):
            server.add(f"{index}_{number}", stops=number % 2 == 0)
        server.end(f"0_{number}")
        server.abort(f"1_{number}")
        server.end(f"2_{number}", pruned=True)
        sizes.add(server.size)
    assert max(sizes) <= 2 * 17
    server.reports.clear()
    assert server.size == 0
