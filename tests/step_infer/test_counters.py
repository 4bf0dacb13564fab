"""What the adapter counts, the summary in the log, and the counts for the metrics."""

import copy
import dataclasses
import logging
import tomllib

import numpy as np
import pytest
from places import ROOT
from prometheus_client import REGISTRY
from scheduler_harness import (
    BOUNDARY,
    EOS,
    WORD,
    Engine,
    Script,
    check_empty,
    make_scheduler,
)
from vllm.compilation.cuda_graph import CUDAGraphStat
from vllm.plugins import STAT_LOGGER_PLUGINS_GROUP
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from step_infer import compat
from step_infer.counters import Counters, Totals
from step_infer.scheduler import StepScheduler
from step_infer.stat_logger import StepStatLogger

pytestmark = pytest.mark.oldest

STEP = (WORD, WORD, WORD, BOUNDARY)


def start(num_blocks, count=6, **settings):
    engine = Engine(make_scheduler(StepScheduler, num_blocks, **settings))
    for number in range(count):
        name, options = f"t{number}", {"group": "g"}
        tokens = (WORD + number, *STEP * 10, EOS)
        engine.add(Script(name, (WORD,) * 3, tokens, options=options))
    return engine


@pytest.fixture
def run():
    """Traces that memory is short for, and what became of them."""
    engine = start(40)
    freed_tokens = freed_blocks = 0
    scheduler = engine.scheduler
    while engine.busy:
        held = {n: sum(held_blocks(scheduler, n)) for n in scheduler.requests}
        computed = {n: r.num_computed_tokens for n, r in scheduler.requests.items()}
        before = set(scheduler.live.traces)
        schedule = scheduler.schedule

        def watched(schedule=schedule, before=before, held=held, computed=computed):
            nonlocal freed_tokens, freed_blocks
            output = schedule()
            for name in before - set(scheduler.live.traces):
                freed_tokens += computed[name]
                freed_blocks += held[name]
            return output

        scheduler.schedule = watched
        engine.step()
        del scheduler.schedule
    return engine, freed_tokens, freed_blocks


def held_blocks(scheduler, name):
    return compat.held_blocks(scheduler.kv_cache_manager, name)


def test_totals_are_those_of_the_traces(run):
    engine, freed_tokens, freed_blocks = run
    totals = engine.scheduler.counters.totals
    reports = [engine.report(name) for name in engine.ended]
    scores = [score for report in reports for score in report["scores"]]
    finite = [score for score in scores if score is not None]
    pruned = [name for name in engine.ended if engine.pruned(name)]
    assert len(pruned) > 1
    assert totals.pruned == len(pruned)
    assert totals.scored_steps == len(finite) > 20
    assert totals.dropped_scores == len(scores) - len(finite) > 0
    assert totals.freed_tokens == freed_tokens
    assert totals.freed_kv_blocks == freed_blocks
    assert totals.disabled == 0
    assert engine.scheduler.counters.score_sum == pytest.approx(sum(finite))
    check_empty(engine.scheduler)


def test_shared_prompt_blocks_do_not_count_as_freed():
    prompt = tuple(WORD + n % 7 for n in range(40))  # 10 blocks, held by every trace
    engine = Engine(make_scheduler(StepScheduler, 40, max_num_batched_tokens=256))
    engine.add(Script("t0", prompt, (*STEP * 10, EOS), options={"group": "g"}))
    engine.step()
    engine.step()
    for number in range(1, 6):
        engine.add(Script(f"t{number}", prompt, (*STEP * 10, EOS), options={"group": "g"}))
    engine.run()
    totals = engine.scheduler.counters.totals
    assert totals.pruned > 0
    assert totals.freed_tokens > 40 * totals.pruned
    # All but the prompt's last block are shared; a trace's last block may not be full.
    assert totals.freed_kv_blocks * 4 <= totals.freed_tokens - (36 - 4) * totals.pruned


def test_states_that_are_not_finite_reach_no_decision(caplog):
    """Every row of every step is NaN, as from NaN hidden states: all dropped, nobody pruned."""
    engine = start(40)
    scheduler, update = engine.scheduler, engine.scheduler.update_from_output

    def spoiled(step, output):
        rows = getattr(output, "step_rows", None)
        if rows is not None:
            rows.scores_B[:] = np.nan
        return update(step, output)

    scheduler.update_from_output = spoiled
    engine.run()
    assert not any(map(engine.pruned, engine.ended))
    assert engine.preemptions > 0
    for name, script in engine.runner.scripts.items():
        assert engine.tokens[name] == script.generated()
        report = engine.report(name)
        assert report["score"] is None
        assert report["scores"] == [None] * 10
    totals = scheduler.counters.totals
    assert (totals.dropped_scores, totals.scored_steps, totals.disabled) == (60, 0, 0)
    check_empty(scheduler)


def test_boundaries_that_nobody_wants_scored_are_no_dropped_scores():
    engine = start(400)  # without a scorer
    while engine.busy:
        engine.step(rows_missing=True)
    assert all(engine.report(name)["scores"] == [None] * 10 for name in engine.runner.scripts)
    assert engine.scheduler.counters.totals == Totals()


def test_waiting_traces_that_are_held_back_are_counted():
    engine = start(40)
    while not any(map(engine.pruned, engine.runner.scripts)):
        engine.step()
    assert engine.scheduler.counters.totals.held_steps == 0
    engine.add(Script("new", (WORD,) * 3, (*STEP, EOS), options={"group": "other"}))
    engine.step()
    assert engine.scheduler.counters.totals.held_steps == 1
    engine.run()
    assert engine.scheduler.counters.totals.held_steps > 1


def test_a_summary_is_logged_at_most_every_ten_seconds_and_only_with_news():
    counters = Counters()
    assert counters.summary(0.0) is None
    counters.score([0.25])
    assert "1 steps scored (+1), 0 traces pruned" in counters.summary(100.0)
    counters.score([0.75])
    counters.prune(120, 7)
    assert counters.summary(109.9) is None
    line = counters.summary(110.0)
    assert "2 steps scored (+1), 1 traces pruned (+1), which freed 120 tokens and 7 KV" in line
    assert "mean step score 0.50" in line
    assert counters.summary(500.0) is None, "nothing is new"
    counters.drop(1)
    counters.disable()
    line = counters.summary(501.0)
    assert "1 scores dropped" in line
    assert line.endswith("OFF after a failure.")


def test_the_log_has_a_line_for_each_pruned_trace_and_few_summaries(caplog):
    with caplog.at_level(logging.DEBUG, "vllm.step_infer.scheduler"):
        engine = start(40)
        engine.run()
        engine.scheduler.shutdown()
    pruned = [name for name in engine.ended if engine.pruned(name)]
    lines = [r for r in caplog.records if r.getMessage().startswith("step_prune ")]
    assert [record.levelname for record in lines] == ["DEBUG"] * len(pruned)
    for name, record in zip(pruned, lines, strict=True):
        fields = dict(pair.split("=", 1) for pair in record.getMessage().split()[1:])
        assert fields["request"] == repr(name)
        assert fields["group"] == "'g'"
        assert float(fields["score"]) == pytest.approx(engine.report(name)["score"], abs=1e-4)
        assert int(fields["freed_kv_blocks"]) > 0
    sums = [r for r in caplog.records if r.getMessage().startswith("Step scoring: ")]
    assert len(sums) == 2, "the first counts, and what is left at the end"
    assert f"{len(pruned):,} traces pruned" in sums[-1].getMessage()


def samples(model, engine):
    """Return this process's Prometheus samples of one engine."""
    labels = {"model_name": model, "engine": str(engine)}
    return {
        sample.labels.get("le", sample.name): sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if metric.name.startswith("step_") and labels.items() <= sample.labels.items()
    }


def test_news_travel_with_vllms_statistics_and_become_metrics(monkeypatch):
    monkeypatch.setattr(compat, "has_front_end", lambda config: True)
    engine = start(40)
    config = engine.scheduler.vllm_config
    stat_logger, model = StepStatLogger(config, [0, 1]), config.model_config.served_model_name
    before = [samples(model, index) for index in (0, 1)]
    assert len(before[0]) > 15
    encoder, decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
    counters, scored = engine.scheduler.counters, []
    count = counters.score
    monkeypatch.setattr(counters, "score", lambda scores: (scored.extend(scores), count(scores)))
    steps = 0
    while engine.busy:
        _, outputs = engine.step(rows_failed=steps == 36)
        steps += 1
        for client in (outputs or {}).values():
            received = decoder.decode(encoder.encode(client)).scheduler_stats
            stat_logger.record(received, None, engine_idx=1)
    after = [samples(model, index) for index in (0, 1)]
    assert after[0] == before[0], "another engine's"
    grown = {name: value - before[1][name] for name, value in after[1].items()}
    assert engine.scheduler.disabled
    for field in dataclasses.fields(Totals):
        name = "step_disabled" if field.name == "disabled" else f"step_{field.name}_total"
        assert grown[name] == getattr(counters.totals, field.name)
    assert grown["step_pruned_total"] > 0
    assert grown["step_score_count"] == counters.totals.scored_steps > 20
    assert grown["step_score_sum"] == pytest.approx(counters.score_sum, abs=0.01)
    for tenth in range(1, 11):
        below = sum(score <= tenth / 10 for score in scored)
        assert grown[str(tenth / 10)] == pytest.approx(below, abs=1)


def test_in_one_process_vllms_statistics_stay_its_own():
    engine = start(40)
    while engine.busy:
        _, outputs = engine.step()
        for client in (outputs or {}).values():
            assert client.scheduler_stats.cudagraph_stats is None
    assert engine.scheduler.counters.totals.pruned > 0


def test_vllms_own_statistic_is_never_replaced():
    own = CUDAGraphStat(1, 2, 1, "FULL")
    stats = SchedulerStats(cudagraph_stats=own)
    compat.send_counts(stats, "{}")
    assert stats.cudagraph_stats is own
    assert compat.received_counts(stats) is None
    assert compat.received_counts(None) is None


def test_a_server_without_the_adapter_counts_nothing():
    config = copy.copy(start(40, count=0).scheduler.vllm_config)
    config.additional_config = {}
    stat_logger, stats = StepStatLogger(config, [7]), SchedulerStats()
    compat.send_counts(stats, '{"pruned": 3}')
    stat_logger.record(stats, None, engine_idx=7)
    assert samples(config.model_config.served_model_name, 7) == {}


def test_vllm_finds_the_metrics_by_their_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    group = project["project"]["entry-points"][STAT_LOGGER_PLUGINS_GROUP]
    module, _, name = group["step"].partition(":")
    assert (module, name) == (StepStatLogger.__module__, StepStatLogger.__name__)
