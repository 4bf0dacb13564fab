"""For collection tests: an engine that only pretends, and what must hold of every result."""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from data_gen.config import CollectConfig
from data_gen.traces.directory import TraceDirectory
from step_infer.client.engine import EngineStats
from step_infer.client.trace import Trace, TracePlan, trace_seed
from step_infer.scorer.think_end import THINK_END


class CollectEngine:
    """Yields made-up traces in a random order; `dies_after` so many it raises.

    The answer of trace i is i modulo `answers`; every third trace gives none.
    """

    H = 8

    def __init__(self, dies_after: int | None = None, error: type[BaseException] = RuntimeError):
        self.dies_after = dies_after
        self.error = error
        self.started_with: dict[str, Any] | None = None
        self.closed = False
        self.yielded: list[tuple[str, int]] = []

    def __call__(self, model: str, scorer: str | None, **options: Any) -> "CollectEngine":
        self.started_with = {"model": model, "scorer": scorer, **options}
        return self

    def plan(self, question_id, question, n, sampling, seed, system, chat_template_kwargs):
        self.prompted_with = chat_template_kwargs
        return [
            TracePlan(question_id, i, (1, 2), trace_seed(seed, question_id, i), sampling)
            for i in range(n)
        ]

    def stream(
        self, plans: Iterable[TracePlan], max_in_flight: int, on_step: Callable[[], None]
    ) -> Iterator[Trace]:
        plans = list(plans)
        random.Random(0).shuffle(plans)
        for count, plan in enumerate(plans):
            if count == self.dies_after:
                raise self.error
            on_step()
            self.yielded.append((plan.question_id, plan.trace_id))
            yield self.trace(plan)

    def trace(self, plan: TracePlan) -> Trace:
        steps = plan.trace_id % 4
        text = f"</think>\\boxed{{{plan.trace_id % 2}}}" if plan.trace_id % 3 else "I give up"
        positions = list(range(5, 5 + steps))
        hidden_SH = None
        if self.started_with is not None and self.started_with["capture"] and steps:
            hidden_SH = torch.full((steps, self.H), float(plan.seed % 251)).bfloat16()
        return Trace(
            plan.question_id,
            plan.trace_id,
            plan.seed,
            list(plan.prompt_token_ids),
            list(range(10 + plan.trace_id)),
            text,
            "stop",
            plan.extract(text, THINK_END),
            positions,
            hidden_SH=hidden_SH,
        )

    def stats(self) -> EngineStats:
        return EngineStats(0.0, generated_tokens=1)

    def close(self) -> None:
        self.closed = True


def assert_whole(config: CollectConfig, questions: int) -> None:
    """Every trace once; every trace's rows in its shard are its own."""
    found = TraceDirectory(config.out)
    found.verify()
    keys = list(found.keys())
    assert len(keys) == len(set(keys)) == questions * config.num_traces
    for index in range(found.num_parts):
        shard = found.shard(index)
        rows = found.part(index).to_pylist()
        assert shard.rows == sum(row["num_steps"] for row in rows)
        for number, row in enumerate(rows):
            steps = slice(row["row_start"], row["row_start"] + row["num_steps"])
            assert row["shard"] == index
            assert shard.position()[steps].tolist() == row["boundary_positions"]
            assert shard.trace_index()[steps].tolist() == [number] * row["num_steps"]
