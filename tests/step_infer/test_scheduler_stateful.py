"""Random arrivals, scores, aborts and finishes: what must hold of the real scheduler at each step.

The machine keeps its own account of groups and step scores, from what it put in and what came out,
and compares the scheduler with it after each step.
"""

import math
import random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from scheduler_harness import (
    BOUNDARY,
    EOS,
    MAX_MODEL_LEN,
    RULE,
    THINK_END,
    WORD,
    Engine,
    Script,
    check_blocks,
    check_empty,
    make_scheduler,
    stride_rule,
)
from vllm.v1.engine import FinishReason

from step_eval.methods.victim_scheduler import VictimScheduler
from step_eval.methods.victims import VICTIMS
from step_infer.replies import IMPLICIT_GROUP
from step_infer.scheduler import StepScheduler
from step_infer.scorer.aggregate import AGGREGATORS

pytestmark = pytest.mark.oldest

NUM_BLOCKS = 24
OPTIONS = [
    "a",
    "a",
    "b",
    None,
    {},
    {"group": "a", "prune": False},
    {"group": "b", "min_keep": 2},
    {"group": "c", "min_steps": 3, "aggregator": "last"},
    '{"group": "c"}',
    {"group": "b", "window": 4, "stop_below": 3.5},
    {"window": 3, "stop_below": 3.5},
]


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a StepScheduler whose KV cache is far too small."""

    def __init__(self):
        super().__init__()
        self.number = 0
        self.arrived = {}  # group -> names since it last had no live trace
        self.num_pruned = 0
        self.num_unsure = 0
        self.num_branched = 0
        self.num_resets = 0
        self.was_reset = False
        self.abort_pruned = False

    @initialize(
        in_flight=st.sampled_from([0, 1, 1]),
        asynchronous=st.sampled_from([True, True, False]),
        policy=st.sampled_from(["fcfs", "fcfs", "priority"]),
        v2_runner=st.booleans(),
        budget=st.sampled_from([16, 64]),
        long_prefill=st.sampled_from([0, 0, 6]),
        victim=st.sampled_from(["score", *VICTIMS]),
        drafts=st.sampled_from([0, 0, 1, 3]),
        stride=st.sampled_from([0, 0, 3]),
    )
    def start(
        self,
        in_flight,
        asynchronous,
        policy,
        v2_runner,
        budget,
        long_prefill,
        victim,
        drafts,
        stride,
    ):
        self.boundaries = stride_rule(stride) if stride else RULE
        if drafts and not asynchronous:
            in_flight = 0  # drafts come with the last step's tokens, and no steps overlap
        scheduler = make_scheduler(
            StepScheduler if victim == "score" else VictimScheduler,
            NUM_BLOCKS,
            max_num_batched_tokens=budget,
            policy=policy,
            v2_runner=v2_runner and asynchronous,
            long_prefill=long_prefill,
            asynchronous=asynchronous,
            drafts=drafts,
            confidence=True,
            boundary=self.boundaries.to_dict(),
            victim=victim,
        )
        self.engine = Engine(scheduler, in_flight)
        self.watch(scheduler)

    def watch(self, scheduler):
        """Look at each call of `schedule`: what it pruned, and what it preempted."""
        schedule = scheduler.schedule

        def watched(*args, **kwargs):
            running = [request.request_id for request in scheduler.running]
            before = {name: self.prunable(name) for name in running}
            kept = {group: self.kept(group) for group in self.arrived}
            output = schedule(*args, **kwargs)
            for name in [name for name in running if name not in scheduler.requests]:
                group = self.group_of(name)
                assert before[name], "a trace was pruned that must not be"
                kept[group] -= 1
                options = self.engine.runner.scripts[name].opted
                assert kept[group] >= options.get("min_keep", 1), "a group lost too many traces"
                assert kept[group] >= self.min_keep(group), "a group lost too many traces"
                self.num_pruned += 1
                if self.abort_pruned:  # before it could hear of its end
                    self.engine.abort([name])
            if output.preempted_req_ids and not self.was_reset:
                for name in running:
                    if before[name] and name in scheduler.requests:
                        group = self.group_of(name)
                        assert kept[group] <= self.min_keep(group), (
                            "a request was preempted though a trace could be pruned"
                        )
            self.was_reset = False
            return output

        scheduler.schedule = watched

    def group_of(self, name):
        """Return a trace's group: the one it names, else that of its request's children."""
        options = self.engine.runner.scripts[name].opted
        if options is None:
            return None
        _, is_child, parent = name.partition("_")
        return options.get("group") or (IMPLICIT_GROUP + parent if is_child else None)

    def prunable(self, name):
        """Whether a running trace may be pruned, its group's size left aside."""
        script = self.engine.runner.scripts[name]
        options = script.opted
        if self.group_of(name) is None or options.get("prune") is False:
            return False
        scores = self.engine.scheduler.live.traces[name].scores  # compared after each step
        scored = [score for score in scores if score is not None]
        request = self.engine.scheduler.requests[name]
        longest = min(script.max_tokens, MAX_MODEL_LEN - len(script.prompt))
        in_flight = min(request.num_output_placeholders, 1)  # of drafts none may be accepted
        if not in_flight and request.num_computed_tokens >= request.num_tokens:
            in_flight = 1  # without async scheduling
        if len(self.engine.tokens[name]) + in_flight >= longest:
            return False  # its last step is in flight
        return len(scored) >= options.get("min_steps", 1)

    def check_scores(self, name, positions, scores):
        """Check that each boundary that was read was scored once, by the row that read it."""
        tokens = [*self.inherited(name), *self.engine.tokens[name]]
        before = len(tokens) - len(self.engine.tokens[name])
        expected = self.boundaries.positions(tokens)
        if before == len(tokens):  # its last token ends a step that its parent read
            expected = self.boundaries.positions([*tokens, WORD]) if before else expected
        if self.num_resets and len(positions) > len(expected):
            # A reset makes vLLM drop the tokens of the step in flight, not what it had read.
            expected = self.boundaries.positions([*tokens, WORD])
        assert positions == expected
        history = (self.engine.runner.scripts[name].opted or {}).get("inherit", {"scores": []})
        of, known = self.engine.runner.first_row, len(history["scores"])
        found = [of[name, position - before] for position in positions[known:]]
        own = [score if math.isfinite(score) else None for score in found]
        assert scores == [*history["scores"], *own]

    def inherited(self, name):
        """Return the tokens that a branch has from its parent; none for other traces."""
        script = self.engine.runner.scripts[name]
        history = (script.opted or {}).get("inherit")
        return script.prompt[-history["tokens"] :] if history else ()

    def check_confidences(self, name, positions, confidences, whole):
        """Check the mean confidence of all tokens up to each boundary, and of all that came out."""
        of = self.engine.runner.confidence
        before, base, known = len(self.inherited(name)), 0.0, []
        if before:
            known = self.engine.runner.scripts[name].opted["inherit"]["confidences"]
            base = before * (math.nan if known[-1] is None else known[-1])
        assert confidences[: len(known)] == known
        ends = [*positions, before + len(self.engine.tokens[name]) - 1]
        for end, found in list(zip(ends, [*confidences, whole], strict=True))[len(known) :]:
            own = sum(of[name, index] for index in range(end + 1 - before))
            mean = (base + own) / (end + 1) if end >= 0 else None
            known = mean is not None and math.isfinite(mean)
            assert found == (pytest.approx(mean) if known else None)

    def check_groups(self, name, lowest, unsure):
        """Check a trace's lowest group, and that it was stopped by its last step if at all."""
        options = self.engine.runner.scripts[name].opted
        window, bar = options["window"], options["stop_below"]
        of = self.engine.runner.confidence
        found = [of[name, index] for index in range(len(self.engine.tokens[name]))]
        found = [value for value in found if math.isfinite(value)]
        groups = [sum(found[i : i + window]) / window for i in range(len(found) - window + 1)]
        whole = sum(found) / len(found) if found else None
        expected = min(groups) if groups else whole
        assert lowest == (None if expected is None else pytest.approx(expected))
        last = 1 + self.engine.scheduler.num_spec_tokens  # tokens of the last step, at most
        if unsure:
            assert min(groups[-last:]) < bar
        if self.group_of(name) is None:  # nothing keeps it; its last token may end it anyway
            assert all(group >= bar for group in groups[:-last])

    def kept(self, group):
        """Return how many traces of a group are live, or ended by themselves and can be judged."""
        ended = self.engine.ended
        return sum(
            name in self.engine.scheduler.requests
            or (
                name in ended
                and ended[name].finish_reason != FinishReason.ABORT
                and self.is_judged(name)
            )
            for name in self.arrived.get(group, ())
        )

    def is_judged(self, name):
        """Whether an ended trace has a step score, or asked to go by its confidence."""
        asked = "window" in self.engine.runner.scripts[name].opted
        return asked or self.engine.report(name)["score"] is not None

    def min_keep(self, group):
        """Return the most traces that a live trace of a group asks to keep."""
        live = [name for name in self.arrived[group] if name in self.engine.scheduler.requests]
        options = [self.engine.runner.scripts[name].opted for name in live]
        return max((o.get("min_keep", 1) for o in options), default=1)

    def forget_groups(self):
        """A group without live traces begins anew."""
        live = self.engine.scheduler.requests
        for group, names in list(self.arrived.items()):
            if not any(name in live for name in names):
                del self.arrived[group]

    @rule(
        count=st.integers(2, 8),
        options=st.sampled_from(OPTIONS),
        seed=st.integers(0, 2**32 - 1),
        children=st.sampled_from([False, False, True]),
    )
    def add(self, count, options, seed, children):
        """Add traces of one prompt: requests of their own, or the children of one with n > 1."""
        self.forget_groups()
        parent = f"_p{self.number}" if children else ""
        random_ = random.Random(seed)
        prompt = tuple(range(WORD, WORD + random_.randint(1, 20)))
        for index in range(count):
            tokens = random_.choices(
                [WORD, WORD + 1, BOUNDARY, THINK_END], [4, 4, 4, 0.1], k=random_.randint(5, 50)
            )
            script = Script(
                f"{index}{parent}" if children else f"r{self.number}",
                prompt,
                # Each trace begins with another token, so that traces do not share all blocks.
                (WORD + self.number % 80, *tokens, EOS),
                random_.choice([1, random_.randint(2, 40), 10_000, 10_000, 10_000]),
                options,
                random_.randint(0, 2),
            )
            self.number += 1
            self.engine.add(script)
            group = self.group_of(script.name)
            if group is not None:
                self.arrived.setdefault(group, []).append(script.name)

    @rule(seed=st.integers(0, 2**32 - 1), parent_goes=st.booleans())
    def branch(self, seed, parent_goes):
        """Let a running trace go on as a further one, from its last scored boundary."""
        random_ = random.Random(seed)
        engine, traces = self.engine, self.engine.scheduler.live.traces
        able = [
            name
            for name, trace in traces.items()
            if trace.positions
            and "_" not in name
            and "window" not in engine.runner.scripts[name].opted
            and trace.positions[-1] < len(self.inherited(name)) + len(engine.tokens[name])
        ]
        if not able:
            return
        name = random_.choice(sorted(able))
        script, trace = engine.runner.scripts[name], traces[name]
        point = trace.positions[-1] + 1
        end = len(script.prompt) - len(self.inherited(name)) + point
        history = {
            "parent": name,
            "tokens": point,
            "scores": list(trace.scores),
            "confidences": list(trace.confidences),
        }
        child = Script(
            f"r{self.number}",
            (*script.prompt, *engine.tokens[name])[:end],
            (*random_.choices([WORD, WORD + 1, BOUNDARY], k=random_.randint(1, 30)), EOS),
            options={**script.opted, "inherit": history},
        )
        self.number += 1
        self.num_branched += 1
        if parent_goes:  # while its child is being made
            engine.abort([name])
        self.forget_groups()
        engine.add(child)
        group = self.group_of(child.name)
        if group is not None:
            self.arrived.setdefault(group, []).append(child.name)

    @rule(steps=st.integers(5, 30), missing=st.sampled_from([False, False, False, True]))
    def run(self, steps, missing):
        for _ in range(steps):
            self.step(rows_missing=missing)

    @rule(data=st.data())
    @precondition(lambda self: self.engine.scheduler.requests)
    def abort_before_or_while_a_step_runs(self, data):
        live = sorted(self.engine.scheduler.requests)
        names = data.draw(st.lists(st.sampled_from(live), max_size=3, unique=True))
        if data.draw(st.booleans()):
            self.engine.abort(names)
            self.step()
        else:
            self.step(abort=names)

    @rule()
    def the_client_of_a_trace_goes_away_in_the_step_that_prunes_it(self):
        self.abort_pruned = True
        for _ in range(30):
            self.step()
        self.abort_pruned = False

    @rule()
    def reset_the_prefix_cache(self):
        self.engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        self.was_reset = True
        self.num_resets += 1

    def step(self, **how):
        self.engine.step(**how)
        self.forget_groups()
        self.check()

    def check(self):
        scheduler = self.engine.scheduler
        assert not scheduler.disabled
        check_blocks(scheduler)
        live = {
            name
            for name in scheduler.requests
            if self.engine.runner.scripts[name].opted is not None
        }
        assert set(scheduler.live.traces) == live
        assert scheduler.live.kept == {group: self.kept(group) for group in self.arrived}
        for name in live:
            trace = scheduler.live.traces[name]
            trace.catch_up()  # as before each look at how long a trace is
            self.check_scores(name, trace.positions, trace.scores)
            self.check_confidences(name, trace.positions, trace.confidences, trace.confidence)

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        self.engine.run()
        check_empty(self.engine.scheduler)
        assert self.engine.busy is False
        for name, script in self.engine.runner.scripts.items():
            self.check_ended(name, script)

    def check_ended(self, name, script):
        engine = self.engine
        if name not in engine.ended:
            assert name in engine.aborted, "a request never ended"
            return
        tokens = engine.tokens[name]
        unsure = engine.ended[name].stop_reason == "confidence"
        if unsure:
            assert tokens == script.generated()[: len(tokens)]
            self.num_unsure += 1
        elif not engine.pruned(name):
            assert tokens == script.generated()
        if script.opted is None:
            assert not engine.ended[name].kv_transfer_params
            return
        report = engine.report(name)
        assert report["pruned"] == engine.pruned(name)
        self.check_scores(name, report["positions"], report["scores"])
        self.check_confidences(
            name, report["positions"], report["confidences"], report["confidence"]
        )
        if "window" in script.opted:
            self.check_groups(name, report["lowest_confidence"], unsure)
        for choice in report.get("choices", ()):  # of one request's children
            sibling = f"{choice['index']}_{name.partition('_')[2]}"
            if sibling in engine.ended:
                assert choice["pruned"] == engine.pruned(sibling)
                assert choice["scores"] == engine.report(sibling)["scores"]
        finite = [score for score in report["scores"] if score is not None]
        aggregator = AGGREGATORS[script.opted.get("aggregator", "mean")]
        assert report["score"] == (pytest.approx(aggregator(finite)) if finite else None)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    derandomize=True,  # the same runs everywhere; --hypothesis-seed is for new ones
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes
    suppress_health_check=list(HealthCheck),
)


def test_long_dense_runs_prune_often_and_break_no_rule():
    num_pruned = num_preempted = num_unsure = of_children = with_choices = accepted = rejected = 0
    num_branched = 0
    for seed in range(24):
        random_ = random.Random(seed)
        machine = SchedulerMachine()
        machine.start(
            in_flight=seed % 2,
            asynchronous=seed % 4 < 3,
            policy=random_.choice(["fcfs", "fcfs", "priority"]),
            v2_runner=random_.random() < 0.5,
            budget=random_.choice([16, 64]),
            long_prefill=random_.choice([0, 0, 6]),
            victim=VICTIMS[seed % len(VICTIMS)],
            drafts=random_.choice([0, 0, 3]),
            stride=random_.choice([0, 0, 3]),
        )
        for _ in range(12):
            options, children = random_.choice(OPTIONS), random_.random() < 0.3
            machine.add(random_.randint(2, 8), options, random_.getrandbits(32), children)
            machine.abort_pruned = random_.random() < 0.2
            machine.run(random_.randint(1, 30), missing=random_.random() < 0.1)
            machine.branch(random_.getrandbits(32), random_.random() < 0.2)
            live = sorted(machine.engine.scheduler.requests)
            machine.step(abort=random_.sample(live, min(len(live), random_.choice([0, 0, 2]))))
        machine.teardown()
        num_pruned += machine.num_pruned
        num_unsure += machine.num_unsure
        num_branched += machine.num_branched
        accepted += machine.engine.runner.accepted
        rejected += machine.engine.runner.rejected
        num_preempted += machine.engine.preemptions
        of_children += sum(
            machine.engine.pruned(name) for name in machine.engine.ended if "_p" in name
        )
        with_choices += sum(
            "choices" in machine.engine.report(name)
            for name, output in machine.engine.ended.items()
            if output.kv_transfer_params
        )
    assert of_children > 10
    assert with_choices > 20
    assert num_pruned > 100
    assert num_unsure > 20
    assert num_branched > 100
    assert num_preempted > 20
    assert accepted > 1000
    assert rejected > 1000
