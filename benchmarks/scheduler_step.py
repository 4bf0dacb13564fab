"""Scheduler time of one engine step: StepScheduler against vLLM's AsyncScheduler, on the CPU.

Both schedulers run the same requests in one process, step by step in turn, as under async
scheduling (a step is scheduled before the last one's output is known). Timed are `schedule` and
`update_from_output`, in CPU time; the model runner is faked outside the timed part. All requests
have opted in, run from the first to the last step and meet a boundary every 16 tokens on average,
or with `--stride K` every K tokens. With `--confidence` each token comes with its confidence.

usage: python benchmarks/scheduler_step.py [--requests 1000] [--steps 400] [--memory ample]
           [--stride 8] [--confidence]
"""

import argparse
import gc
import platform
import random
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.outputs import ModelRunnerOutput

from step_eval.statistics import interval_ends
from step_infer import compat
from step_infer.scheduler import StepScheduler
from step_infer.wire import ROWS_ATTRIBUTE, StepRows

# They make the same schedulers.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "harness"))
from scheduler_harness import BOUNDARY, WORD, Script, make_scheduler, stride_rule  # noqa: E402

PROMPT_TOKENS = 128
BLOCK_SIZE = 16
BATCHED_TOKENS = 8192
TRACES_PER_GROUP = 50
WARM_UP_STEPS = 50


def start(
    kind: type[AsyncScheduler], requests: int, num_blocks: int, **settings: object
) -> AsyncScheduler:
    """Return a scheduler with all requests added; `num_blocks` KV blocks can be used."""
    scheduler = make_scheduler(
        kind,
        num_blocks,
        max_num_seqs=requests,
        max_num_batched_tokens=BATCHED_TOKENS,
        block_size=BLOCK_SIZE,
        max_model_len=4096,
        **settings,
    )
    for number in range(requests):
        group = number // TRACES_PER_GROUP
        prompt = random.Random(group).choices(range(WORD, 100), k=PROMPT_TOKENS - number % 16)
        script = Script(f"r{number}", tuple(prompt), (), 3900, {"group": f"g{group}"})
        scheduler.add_request(script.request(number, BLOCK_SIZE))
    return scheduler


class Side:
    """One scheduler, its steps in flight and its times."""

    def __init__(self, scheduler: AsyncScheduler, confidence: bool) -> None:
        self.scheduler = scheduler
        self._confidence = confidence
        self._random = random.Random(0)
        self._queue: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self._taken: list[Any] = []
        self.seconds: list[float] = []

    def leave_free(self, num_blocks: int) -> None:
        """Take blocks out of the cache, or give them back, until just so many are free."""
        pool = self.scheduler.kv_cache_manager.block_pool
        surplus = pool.get_num_free_blocks() - num_blocks
        if surplus > 0:
            self._taken += pool.get_new_blocks(surplus)
        else:
            pool.free_blocks([self._taken.pop() for _ in range(-surplus)])

    def step(self) -> None:
        """Schedule one step and take in the output of the one before."""
        begin = time.thread_time()
        step = self.scheduler.schedule()
        seconds = time.thread_time() - begin
        self._queue.append((step, self._run(step)))
        if len(self._queue) > 1:
            oldest = self._queue.popleft()
            begin = time.thread_time()
            self.scheduler.update_from_output(*oldest)
            seconds += time.thread_time() - begin
        self.seconds.append(seconds)

    def _run(self, step: Any) -> ModelRunnerOutput:
        names = list(step.num_scheduled_tokens)
        tokens = [BOUNDARY if self._random.random() < 1 / 16 else WORD for _ in names]
        sampled = [
            [] if self.scheduler.requests[name].is_prefill_chunk else [token]
            for name, token in zip(names, tokens, strict=True)
        ]
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=sampled,
        )
        scores_B = np.array([self._random.random() for _ in names], np.float32)
        confidences_B = 10 + scores_B if self._confidence else None
        setattr(output, ROWS_ATTRIBUTE, StepRows(scores_B, confidences_B=confidences_B))
        return output


def ratio_interval(
    theirs: list[float], ours: list[float], draws: int = 2000
) -> tuple[float, float]:
    """Return the 95 % interval of the ratio of median times, from draws of steps in pairs."""
    pairs = np.array([theirs, ours])
    picks = np.random.default_rng(0).integers(0, len(theirs), (draws, len(theirs)))
    medians = np.median(pairs[:, picks], axis=2)
    low, high = interval_ends(medians[1] / medians[0], len(theirs))
    assert low is not None
    assert high is not None
    return low, high


def main() -> None:
    """Time both and print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=1000, help="running requests (1000)")
    parser.add_argument("--steps", type=int, default=400, help="timed steps (400)")
    parser.add_argument(
        "--memory",
        choices=("ample", "scarce"),
        default="ample",
        help="scarce: so few free KV blocks that each step's growth is counted out (ample)",
    )
    parser.add_argument("--stride", type=int, help="a boundary every so many tokens")
    parser.add_argument("--confidence", action="store_true", help="token confidences as well")
    options = parser.parse_args()
    settings: dict[str, object] = {"confidence": options.confidence}
    if options.stride:
        settings["boundary"] = stride_rule(options.stride).to_dict()
    steps = WARM_UP_STEPS + options.steps + 20
    need = options.requests * (steps + PROMPT_TOKENS) // BLOCK_SIZE + 4 * BATCHED_TOKENS
    kinds = (AsyncScheduler, StepScheduler)
    compat.has_front_end = lambda config: True  # as in a server: with counts for its metrics
    sides = [
        Side(start(kind, options.requests, need, **settings), options.confidence) for kind in kinds
    ]
    gc.collect()
    gc.freeze()  # as vLLM's engine does after start-up
    order = random.Random(0)
    for number in range(steps):
        for side in order.sample(sides, 2):
            if options.memory == "scarce" and number >= WARM_UP_STEPS:
                side.leave_free(options.requests)
            side.step()
    running = {len(side.scheduler.running) for side in sides}
    if running != {options.requests}:
        raise SystemExit(f"error: Expected {options.requests} running requests, found {running}.")
    theirs, ours = (side.seconds[-options.steps :] for side in sides)
    low, high = ratio_interval(theirs, ours)
    theirs_ms, ours_ms = (1e3 * statistics.median(times) for times in (theirs, ours))
    print(
        f"vLLM {vllm.__version__}, Python {platform.python_version()}, "
        f"{options.requests} running requests, {options.steps} steps, {options.memory} memory"
        f"{f', stride {options.stride}' if options.stride else ''}"
        f"{', confidences' if options.confidence else ''}: "
        f"AsyncScheduler {theirs_ms:.2f} ms, StepScheduler {ours_ms:.2f} ms a step (medians), "
        f"ratio {ours_ms / theirs_ms:.3f} [{low:.3f}, {high:.3f}]"
    )


if __name__ == "__main__":
    main()
