"""The event log that the scheduler writes, and the page that step-eval events makes of it."""

import json
import math
import threading

import pytest
from scheduler_harness import BOUNDARY, EOS, WORD, Engine, Script, check_empty, make_scheduler

from step_eval.command import command
from step_eval.recorded.events import read_events
from step_eval.report.events import group_rows
from step_infer import event_log
from step_infer.errors import InputError
from step_infer.event_log import EventLog, event_log_path
from step_infer.live_traces import LiveTrace
from step_infer.scheduler import StepScheduler
from step_infer.settings import RequestOptions, StepSettings

pytestmark = pytest.mark.oldest

STEP = (WORD, WORD, WORD, BOUNDARY)


def script(name, group, steps=10):
    options = {} if group is None else {"group": group}
    return Script(name, (WORD,) * 3, (WORD + len(name), *STEP * steps, EOS), options=options)


def trace(name="t", group="g", scores=(0.25, 0.75)):
    made = LiveTrace(name, RequestOptions(group), StepSettings(scorer="x"), "mean")
    made.num_tokens = 9
    for score in scores:
        made.add_score(score)
    return made


@pytest.fixture
def engine(tmp_path):
    """An engine that is short of memory, with its log."""
    path = tmp_path / "events.jsonl"
    engine = Engine(make_scheduler(StepScheduler, 40, event_log=str(path)))
    for number in range(6):
        engine.add(script(f"t{number}", "g"))
    engine.add(script("alone", None, steps=2))
    engine.add(Script("none", (WORD,) * 3, (*STEP, EOS)))
    return engine


def test_each_scored_trace_leaves_one_line_at_its_end(engine):
    for _ in range(12):
        engine.step()
    engine.abort(["t5"])
    engine.run()
    scheduler = engine.scheduler
    scheduler.events.flush()
    events, left_out = read_events([scheduler.events.path])
    assert left_out == 0
    assert sorted(event["request"] for event in events) == ["alone", *(f"t{n}" for n in range(6))]
    for event in events:
        name = event["request"]
        assert event["group"] == (None if name == "alone" else "g")
        assert 0 <= event["kv_use"] <= 1
        if name == "t5":
            assert event["event"] == "abort"
            continue
        report = engine.report(name)
        assert event["score"] == pytest.approx(report["score"], abs=1e-4)
        assert event["steps"] == sum(score is not None for score in report["scores"])
        assert event["tokens"] == len(engine.tokens[name])
        if engine.pruned(name):
            assert event["event"] == "prune"
            assert event["freed_kv_blocks"] > 0
        else:
            assert (event["event"], event["reason"]) == ("finish", "stop")
    pruned = [event for event in events if event["event"] == "prune"]
    assert len(pruned) == scheduler.counters.totals.pruned > 0
    total = sum(event["freed_kv_blocks"] for event in pruned)
    assert total == scheduler.counters.totals.freed_kv_blocks
    check_empty(scheduler)


def test_a_full_disk_ends_the_log_with_one_warning_and_nothing_else(caplog):
    engine = Engine(make_scheduler(StepScheduler, 40, event_log="/dev/full"))
    for number in range(6):
        engine.add(script(f"t{number}", "g"))
    engine.run()
    engine.scheduler.events.flush()
    assert not engine.scheduler.disabled
    assert sum(map(engine.pruned, engine.ended)) > 1
    warnings = [r for r in caplog.records if "The event log /dev/full ends here" in r.getMessage()]
    assert len(warnings) == 1
    assert "No space left" in warnings[0].getMessage()
    engine.scheduler.shutdown()


def test_a_log_goes_on_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "e.jsonl"
    for _ in range(2):
        log = EventLog(path)
        log.write("finish", trace(), 0.5, reason="stop")
        log.close()
    path.write_bytes(path.read_bytes()[:-20])
    log = EventLog(path)
    log.write("prune", trace("u", None, ()), 0.5, freed_kv_blocks=3)
    log.write("prune", trace("v"), 0.5, freed_kv_blocks=3)
    log.close()
    events, left_out = read_events([path])
    assert [event["request"] for event in events] == ["t", "u", "v"]
    assert left_out == 1
    assert events[1]["score"] is None


@pytest.mark.parametrize("content", ["{\n", "a,b\n1,2\n", "\x00" * 9, '{"question": "1+1"}\n'])
def test_a_file_of_another_kind_is_not_appended_to(tmp_path, content):
    path = tmp_path / "scorer.safetensors"
    path.write_text(content)
    with pytest.raises(InputError, match="Expected an event log or a new file at .*Hint"):
        event_log_path(path)
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["", "\n", '{"time":17', 'core":null,"event":"prune"}\n'])
def test_an_empty_log_or_one_cut_at_either_end_goes_on(tmp_path, content):
    path = tmp_path / "e.jsonl"
    path.write_text(content)
    log = EventLog(path)
    log.write("prune", trace("u"), 0.5)
    log.close()
    assert [event["request"] for event in read_events([path])[0]] == ["u"]


def test_each_data_parallel_engine_has_a_file_of_its_own(tmp_path):
    for rank in range(3):
        log = EventLog(tmp_path / "e.jsonl", rank)
        log.write("finish", trace(f"r{rank}"), 0.5)
        log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["e.1.jsonl", "e.2.jsonl", "e.jsonl"]


def test_a_log_that_cannot_be_written_stops_the_start(tmp_path):
    with pytest.raises(InputError, match="Expected a file to write events to at .*nowhere.*Hint"):
        make_scheduler(StepScheduler, 40, event_log=str(tmp_path / "nowhere" / "e.jsonl"))


def test_a_log_of_full_size_makes_room_for_a_new_one_and_is_kept_once(tmp_path, monkeypatch):
    path = tmp_path / "e.jsonl"
    monkeypatch.setattr(event_log, "MAX_BYTES", 1000)
    log = EventLog(path)
    for number in range(40):
        log.write("finish", trace(f"t{number}"), 0.5)
    log.close()
    old = tmp_path / "e.jsonl.old"
    assert sorted(tmp_path.iterdir()) == [path, old]
    assert max(path.stat().st_size, old.stat().st_size) <= 1000
    events, left_out = read_events([old, path])
    assert left_out == 0
    assert [event["request"] for event in events] == [
        f"t{n}" for n in range(40 - len(events), 40)
    ], "a line is missing between the old file and the new one"


def test_a_log_that_another_server_has_moved_goes_on_in_the_new_file(tmp_path):
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    log.write("finish", trace("first"), 0.5)
    log.flush()
    path.rename(tmp_path / "moved")
    log.write("finish", trace("second"), 0.5)
    log.close()
    assert [event["request"] for event in read_events([path])[0]] == ["second"]


def test_a_disk_that_hangs_costs_lines_and_no_time_and_the_log_says_how_many(
    tmp_path, monkeypatch, caplog
):
    hangs = threading.Event()
    append = EventLog._append
    monkeypatch.setattr(event_log, "QUEUED_LINES", 5)
    monkeypatch.setattr(EventLog, "_append", lambda *args: (hangs.wait(), append(*args)))
    log = EventLog(tmp_path / "e.jsonl")
    # A write that waits for the disk goes on in the end, which the test then sees.
    rescue = threading.Timer(60.0, hangs.set)
    rescue.start()
    for number in range(20):
        log.write("finish", trace(f"t{number}"), 0.5)
    assert not hangs.is_set(), "it waited for the disk"
    rescue.cancel()
    assert 14 <= log.num_dropped <= 15  # one line may be with the writer already
    num_dropped = log.num_dropped
    hangs.set()
    log.close()
    events, _ = read_events([tmp_path / "e.jsonl"])
    assert [event["request"] for event in events] == [f"t{n}" for n in range(20 - num_dropped)]
    messages = [record.getMessage() for record in caplog.records]
    assert sum("is too slow: lines are left out" in text for text in messages) == 1
    assert sum(f"lacks {num_dropped} lines" in text for text in messages) == 1


def test_a_disk_that_hangs_for_ever_does_not_stop_the_end(tmp_path, monkeypatch, caplog):
    hangs = threading.Event()
    monkeypatch.setattr(event_log, "_CLOSE_S", 0.2)
    monkeypatch.setattr(EventLog, "_append", lambda *_: hangs.wait())
    log = EventLog(tmp_path / "e.jsonl")
    log.write("finish", trace(), 0.5)
    log.close()
    assert "its last lines are lost" in caplog.text
    hangs.set()


def test_a_long_request_name_is_cut(tmp_path):
    log = EventLog(tmp_path / "e.jsonl")
    log.write("finish", trace("x" * 2**21), 0.5)
    log.close()
    (event,) = read_events([log.path])[0]
    assert event["request"] == "x" * 256


def test_groups_are_told_apart_and_counted():
    base = {"time": 1.0, "steps": 1, "tokens": 5, "kv_use": 0.5}
    events = [
        {**base, "event": "finish", "request": "a", "group": "g", "score": 0.8},
        {**base, "event": "finish", "request": "b", "group": "h", "score": 0.6},
        {**base, "event": "prune", "request": "c", "group": "h", "score": 0.2},
        {**base, "event": "prune", "request": "d", "group": "h", "score": 0.4},
        {**base, "event": "abort", "request": "e", "group": None, "score": None},
    ]
    first, *others = group_rows(events)
    assert (first["name"], first["traces"], first["prune"], first["finish"]) == ("h", 3, 2, 1)
    assert first["pruned_score"] == pytest.approx(0.3)
    assert first["finished_score"] == 0.6
    assert [row["name"] for row in others] == ["g", "no group"]
    assert others[1]["finished_score"] is None


def test_group_names_are_shown_and_leave_the_figures_beside_them_room():
    base = {"time": 1.0, "steps": 1, "tokens": 5, "kv_use": 0.5, "event": "prune", "score": 0.1}
    names = ["a" * 5000, "\u200b", "é😀", "q1\x0055ccf11ff9dc9938", "\x00chatcmpl-1"]
    rows = group_rows([{**base, "request": "r", "group": name} for name in names])
    assert [row["name"] for row in rows] == [
        *("a" * 40 + "…" + "a" * 19, r"'\u200b'", "é😀"),
        *("q1 (caller 55ccf11f)", "chatcmpl-1"),
    ]


def test_the_page_does_not_take_the_place_of_its_log(tmp_path):
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    log.write("prune", trace("u"), 0.5)
    log.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"Expected an output file apart from .*e\.jsonl"):
        command(["events", str(path), "--out", str(path)])
    assert path.read_bytes() == before


def test_step_eval_events_draws_a_log(engine, tmp_path, capsys):
    engine.run()
    engine.scheduler.events.flush()
    log, out = engine.scheduler.events.path, tmp_path / "page" / "events.html"
    with log.open("a") as file:
        file.write('{"time": 1, "event": "prune"}\n' + 100_000 * "[" + "\nhalf a li")
    command(["events", str(log), "--out", str(out)])
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    page = out.read_text()
    pruned = engine.scheduler.counters.totals.pruned
    assert f"pruned: {pruned}" in page
    assert f"finished: {7 - pruned}" in page
    assert "What became of 7 scored traces" in page
    assert "Left out: 3 lines" in page
    assert page.count("<svg") == 4
    assert "http" not in page.replace("http-equiv", "")


def test_what_a_branch_inherited_counts_once_on_the_page(tmp_path):
    rows = [
        {"event": "prune", "request": "a", "tokens": 100},
        {"event": "finish", "request": "b", "tokens": 300, "parent": "a", "inherited": 70},
        {"event": "prune", "request": "c", "tokens": 90, "parent": "b", "inherited": 80},
    ]
    same = {"time": 1.0, "group": "g", "score": 0.5, "steps": 1, "kv_use": 0.5}
    log, out = tmp_path / "e.jsonl", tmp_path / "events.html"
    log.write_text("".join(f"{json.dumps(same | row)}\n" for row in rows))
    command(["events", str(log), "--out", str(out)])
    assert "110 of 340 generated tokens belong to traces that were pruned" in out.read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"time": math.nan},
        {"time": True},
        {"kv_use": math.inf},
        {"score": "high"},
        {"tokens": 10**400},
        {"group": 7},
        {"group": ["g"]},
        {"request": None},
        {"inherited": "many"},
    ],
)
def test_a_line_with_a_value_of_another_kind_is_left_out(tmp_path, changes):
    good = {"time": 1.0, "event": "prune", "request": "r", "group": "g", "score": 0.5}
    good |= {"steps": 1, "tokens": 5, "kv_use": 0.5}
    path = tmp_path / "e.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | changes)}\n")
    assert read_events([path]) == ([good | {"engine": 0}], 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Expected an event log at .*, found: No such file"),
        ("", "Expected events in .*, found none"),
        ('{"event": "prune"}\n[]\n7\n"x"\n', "Expected events in .*, found none"),
        (json.dumps({"event": "prune", "time": "now"}), "Expected events in .*, found none"),
    ],
)
def test_a_file_without_events_is_refused(tmp_path, text, message):
    path = tmp_path / "e.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        command(["events", str(path), "--out", str(tmp_path / "out.html")])
    with pytest.raises(InputError, match="Expected an event log, found none"):
        command(["events"])
