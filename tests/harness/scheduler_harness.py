"""The real schedulers of vLLM without an engine: a fake model runner, and what must always hold.

`Engine` stands for vLLM's EngineCore: it calls `schedule` and `update_from_output` in the same
order as EngineCore.step (one step at a time) or step_with_batch_queue (async scheduling: a step is
scheduled before the last one's output is known). `FakeRunner` reads nothing but the scheduler's
output, as a worker does. Its tokens are those of a script; the score of a row tells the request
and the position, so that a score taken from a wrong row is seen.
"""

import copy
import dataclasses
import functools
import json
import random
import zlib
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from places import CHECKPOINT
from vllm.config import (
    CacheConfig,
    KVTransferConfig,
    ModelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    DraftTokenIds,
    KVConnectorOutput,
    ModelRunnerOutput,
)
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from step_infer.row_scorer import FailedRows
from step_infer.scheduler import StepScheduler
from step_infer.scorer.boundary import BoundaryRule
from step_infer.wire import CONFIG_KEY, ROWS_ATTRIBUTE, UNSCORED_ATTRIBUTE, StepRows

EOS, THINK_END, BOUNDARY, WORD = 2, 4, 6, 10
RULE = BoundaryRule("blank_line", frozenset({BOUNDARY}), THINK_END, r"\n\n")


def stride_rule(stride: int) -> BoundaryRule:
    """Return the rule that a step ends every so many tokens, with the same end of thinking."""
    return BoundaryRule("stride", frozenset(), THINK_END, stride=stride)


BLOCK_SIZE = 4
MAX_MODEL_LEN = 512


@functools.cache
def _config(
    max_num_seqs: int, max_num_batched_tokens: int, policy: str, block_size: int, longest: int
) -> VllmConfig:
    return VllmConfig(
        model_config=ModelConfig(
            model=str(CHECKPOINT), dtype="bfloat16", max_model_len=longest, seed=0
        ),
        cache_config=CacheConfig(block_size=block_size, enable_prefix_caching=True),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=longest,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            async_scheduling=True,
            policy=policy,
        ),
    )


def make_scheduler(
    kind: type[Scheduler],
    num_blocks: int,
    *,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 64,
    policy: str = "fcfs",
    v2_runner: bool = False,
    long_prefill: int = 0,
    block_size: int = BLOCK_SIZE,
    max_model_len: int = MAX_MODEL_LEN,
    asynchronous: bool = True,
    stages: int | None = None,
    drafts: int = 0,
    chunked_prefill: bool = True,
    has_settings: bool = True,
    victim: str | None = None,
    connector: KVTransferConfig | None = None,
    **settings: object,
) -> Scheduler:
    """Return a scheduler as EngineCore builds it, with `num_blocks` usable KV blocks.

    Not `asynchronous`: as for two pipeline stages (or `stages`) with the V1 runner. Their steps
    overlap, and the scheduler sends the tokens back to the first stage. `drafts`: as with
    speculative decoding of so many tokens by a draft model, which writes KV of its own; without
    stages. Not `has_settings`: as for a user who gives the class alone. `victim`: the setting of a
    VictimScheduler. `connector`: a KV connector whose worker's side `Engine` is to run.
    """
    config = copy.copy(
        _config(max_num_seqs, max_num_batched_tokens, policy, block_size, max_model_len)
    )
    config.cache_config = copy.copy(config.cache_config)
    config.cache_config.num_gpu_blocks = num_blocks + 1  # one is vLLM's null block
    config.scheduler_config = copy.copy(config.scheduler_config)
    config.scheduler_config.long_prefill_token_threshold = long_prefill
    config.scheduler_config.enable_chunked_prefill = chunked_prefill
    config.scheduler_config.async_scheduling = asynchronous
    config.parallel_config = copy.copy(config.parallel_config)
    config.parallel_config.pipeline_parallel_size = stages or (1 if asynchronous or drafts else 2)
    if drafts:
        config.speculative_config = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=drafts,
            target_model_config=config.model_config,
            target_parallel_config=config.parallel_config,
        )
    config.kv_transfer_config = connector
    config.scheduler_config.disable_hybrid_kv_cache_manager = True
    config.additional_config = {}
    if has_settings:
        step = {"aggregator": "mean", "boundary": RULE.to_dict(), **settings}
        config.additional_config[CONFIG_KEY] = step
    if victim is not None:
        config.additional_config["step_eval"] = {"victim": victim}
    spec = FullAttentionSpec(
        block_size=block_size, num_kv_heads=2, head_size=64, dtype=torch.bfloat16
    )
    scheduler = kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=num_blocks + 1,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        log_stats=True,
    )
    scheduler.use_v2_model_runner = v2_runner
    scheduler.num_lookahead_tokens = drafts
    return scheduler


@dataclass(frozen=True)
class Script:
    """A request and the tokens that it will generate; the last one is EOS unless it is cut off."""

    name: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    max_tokens: int = 10_000
    options: dict | str | None = None
    """The step options; None does not opt in."""
    priority: int = 0

    def request(self, arrival_time: float, block_size: int = BLOCK_SIZE) -> Request:
        """Return the request as EngineCore hands it to the scheduler."""
        extra = None if self.options is None else {CONFIG_KEY: self.options}
        params = SamplingParams(max_tokens=self.max_tokens, extra_args=extra)
        params.update_from_generation_config({}, eos_token_id=EOS)
        return Request(
            request_id=self.name,
            prompt_token_ids=list(self.prompt),
            sampling_params=params,
            pooling_params=None,
            arrival_time=arrival_time,
            priority=self.priority,
            block_hasher=_block_hasher(block_size),
        )

    def generated(self) -> list[int]:
        """Return what the request generates when nothing stops it early."""
        return list(self.tokens[: min(self.max_tokens, MAX_MODEL_LEN - len(self.prompt))])

    @property
    def opted(self) -> dict | None:
        """The step options as a dictionary; None where it did not opt in."""
        if not isinstance(self.options, str):
            return self.options
        return json.loads(self.options) if "{" in self.options else {"group": self.options}


@functools.cache
def _block_hasher(block_size: int):
    init_none_hash(sha256)
    return get_request_block_hasher(block_size, sha256)


def row_score(name: str, position: int) -> float:
    """Return the score of a request's row: in [0.01, 1), another for each row; some are NaN."""
    code = zlib.crc32(f"{name}/{position}".encode())
    return float("nan") if code % 11 == 0 else float(np.float32(0.01 + (code % 9973) / 10074))


def token_confidence(name: str, index: int) -> float:
    """Return the confidence of a request's generated token: in [1, 11), another for each."""
    return float(np.float32(1 + zlib.crc32(f"{name}#{index}".encode()) % 9973 / 1000))


class FakeRunner:
    """Answers a scheduler's output as a worker would: a token, score and confidence a row.

    Of the tokens drafted for a request it accepts as many as the dice say.
    """

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self._known: dict[str, int] = {}  # tokens of a request that are known here
        self._computed: dict[str, int] = {}  # the scheduler counts drafts that may be rejected
        self._dice = random.Random(0)
        self.connector: KVConnectorBase_V1 | None = None
        self.accepted = 0
        self.rejected = 0
        self.first_row: dict[tuple[str, int], float] = {}
        """The score that the first row of each generated position had; NaN where it had none."""
        self.confidence: dict[tuple[str, int], float] = {}
        """The confidence that came with each generated token; NaN where none came."""

    def run(self, step, rows_missing: bool = False, rows_failed: bool = False) -> ModelRunnerOutput:
        """Return the output of one step, with word of the KV connector where there is one."""
        output = self._run(step, rows_missing, rows_failed)
        if self.connector is not None:
            sent, received = self.connector.get_finished(step.finished_req_ids)
            output.kv_connector_output = KVConnectorOutput(sent, received)
        return output

    def _run(self, step, rows_missing: bool, rows_failed: bool) -> ModelRunnerOutput:
        # Not among the missing rows: what is kept here is what a right mark would let through.
        unscored = getattr(step, UNSCORED_ATTRIBUTE, False)
        for name in step.finished_req_ids:
            self._known.pop(name, None)
            self._computed.pop(name, None)
        computed = self._computed
        for new in step.scheduled_new_reqs:
            computed[new.req_id] = new.num_computed_tokens
            # The V2 runner gets a resumed request as a new one, with all its tokens.
            tokens = getattr(new, "prefill_token_ids", None) or new.prompt_token_ids
            self._known[new.req_id] = len(tokens)
        cached = step.scheduled_cached_reqs
        for name, count, num_output in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            if name in cached.resumed_req_ids:
                computed[name] = count
                self._known[name] = len(self.scripts[name].prompt) + num_output
        names = list(step.num_scheduled_tokens)
        if not names:
            return copy.copy(EMPTY_MODEL_RUNNER_OUTPUT)
        sampled: list[list[int]] = []
        scores: list[float] = []
        confidences: list[float] = []
        begins = [0]
        for name in names:
            script = self.scripts[name]
            drafts = len(step.scheduled_spec_decode_tokens.get(name, ()))
            begins.append(begins[-1] + 1 + drafts)
            end = computed[name] + step.num_scheduled_tokens[name] - drafts
            assert end <= self._known[name], "a token was scheduled before it was sampled"
            position = end - 1 - len(script.prompt)
            accepted = self._dice.randint(0, drafts)
            for place in range(1 + drafts):
                # What a rejected draft's row says is nobody's.
                of = name if place <= accepted else f"{name}, rejected"
                scores.append(row_score(of, position + place))
                confidences.append(token_confidence(of, position + place + 1))
            computed[name] = end
            if end < self._known[name]:
                assert not drafts
                sampled.append([])  # a part of a prefill
                continue
            if position >= 0:
                score = float("nan") if rows_missing else scores[begins[-2]]
                self.first_row.setdefault((name, position), score)
            self._known[name] += 1 + accepted
            computed[name] += accepted
            self.accepted += accepted
            self.rejected += drafts - accepted
            new = range(position + 1, position + 2 + accepted)
            for place, generated in enumerate(new, begins[-2]):
                known = float("nan") if rows_missing else confidences[place]
                self.confidence[name, generated] = known
                # It may have been sampled before, and dropped by a reset.
                self.first_row.pop((name, generated), None)
                if generated < new[-1]:
                    score = float("nan") if rows_missing else scores[place + 1]
                    self.first_row[name, generated] = score
            sampled.append([script.tokens[n] if n < len(script.tokens) else EOS for n in new])
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            sampled_token_ids=sampled,
        )
        if rows_failed:
            setattr(output, ROWS_ATTRIBUTE, FailedRows().result())
        elif not rows_missing and not unscored:
            scores_B, confidences_B = np.array([scores, confidences], np.float32)
            rows = StepRows(scores_B, confidences_B=confidences_B)
            if step.scheduled_spec_decode_tokens:
                rows.first_rows = np.array(begins)
            setattr(output, ROWS_ATTRIBUTE, rows)
        return output


class Engine:
    """vLLM's engine core around one scheduler, and the record of what it did."""

    def __init__(self, scheduler: Scheduler, in_flight: int = 1) -> None:
        """`in_flight`: outputs that are still unknown when a step is scheduled; 0 or 1."""
        self.scheduler = scheduler
        self.runner = FakeRunner()
        if scheduler.connector is not None:
            self.runner.connector = KVConnectorFactory.create_connector(
                scheduler.vllm_config, KVConnectorRole.WORKER, scheduler.kv_cache_config
            )
        self.in_flight = in_flight
        self.asynchronous = scheduler.scheduler_config.async_scheduling
        self._queue: deque = deque()
        self.ended: dict[str, EngineCoreOutput] = {}
        self.tokens: dict[str, list[int]] = {}
        self.aborted: set[str] = set()
        self.preemptions = 0
        self._clock = 0.0
        self._dice = random.Random(0)

    def add(self, script: Script) -> None:
        """Take a request in."""
        self._clock += 1
        self.runner.scripts[script.name] = script
        self.tokens[script.name] = []
        self.scheduler.add_request(script.request(self._clock))

    def abort(self, names: Iterable[str]) -> None:
        """End requests as a client that goes away does."""
        names = [name for name in names if name not in self.ended]
        self.aborted.update(names)
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    def step(
        self,
        *,
        rows_missing: bool = False,
        rows_failed: bool = False,
        abort: Iterable[str] = (),
    ) -> tuple:
        """Schedule a step, and take in the oldest output if enough are in flight.

        Args:
            rows_missing: the worker attaches no scores in this step.
            rows_failed: the worker's scoring fails in this step.
            abort: requests that go away while the step runs.

        Returns:
            The scheduler's output, and what `update_from_output` returned (None: not called).
        """
        scheduled = None
        if self.scheduler.has_requests():
            scheduled = self.scheduler.schedule()
            self.preemptions += len(scheduled.preempted_req_ids or ())
            output = self.runner.run(scheduled, rows_missing, rows_failed)
            self._queue.append((scheduled, output))
            if len(self._queue) <= self.in_flight and scheduled.total_num_scheduled_tokens:
                self.abort(abort)
                return scheduled, None
        self.abort(abort)
        if not self._queue:
            return scheduled, None
        done = self._queue.popleft()
        outputs = self.scheduler.update_from_output(*done)
        drafts = self.scheduler.num_spec_tokens
        # Now and then a drafter has nothing to say, as where a text is too long for it.
        if drafts and not self.asynchronous and self._dice.random() < 0.9:
            names = done[1].req_ids
            tokens = [[WORD] * self._dice.randint(0, drafts) for _ in names]
            self.scheduler.update_draft_token_ids(DraftTokenIds(names, tokens))
        for client in outputs.values():
            for output in client.outputs:
                self._take(output)
        return scheduled, outputs

    def _take(self, output: EngineCoreOutput) -> None:
        name = output.request_id
        assert name not in self.ended, "a request ended twice"
        self.tokens[name] += output.new_token_ids
        if output.finish_reason is not None:
            self.ended[name] = output

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do."""
        return self.scheduler.has_requests() or bool(self._queue)

    def run(self, max_steps: int = 20_000) -> None:
        """Go on until every request has ended."""
        for _ in range(max_steps):
            if not self.busy:
                return
            self.step()
        raise AssertionError("the engine hangs")

    def report(self, name: str) -> dict:
        """Return what a client gets of its trace's scores."""
        return self.ended[name].kv_transfer_params[CONFIG_KEY]

    def pruned(self, name: str) -> bool:
        """Whether a request was stopped for its score."""
        output = self.ended.get(name)
        return output is not None and output.stop_reason == "pruned"


def blocks(scheduler: Scheduler) -> dict:
    """Return all there is to know of a scheduler's KV blocks."""
    pool = scheduler.kv_cache_manager.block_pool
    [manager] = scheduler.kv_cache_manager.coordinator.single_type_managers
    return {
        "held": {name: [b.block_id for b in held] for name, held in manager.req_to_blocks.items()},
        "free": [block.block_id for block in pool.free_block_queue.get_all_free_blocks()],
        "references": [block.ref_cnt for block in pool.blocks],
        "hashes": [block.block_hash for block in pool.blocks],
    }


def check_blocks(scheduler: Scheduler) -> None:
    """Check that each KV block is either free once or held as often as it is counted."""
    pool = scheduler.kv_cache_manager.block_pool
    state = blocks(scheduler)
    holders = Counter(block for held in state["held"].values() for block in held)
    null = pool.null_block.block_id
    free = state["free"]
    assert len(free) == len(set(free)) == pool.get_num_free_blocks(), "a block was freed twice"
    assert null not in free
    for number, references in enumerate(state["references"]):
        if number != null:
            assert references == holders[number], "a block is counted wrongly"
            assert (number in holders) != (number in free), "a block leaked"
    assert set(state["held"]) <= set(scheduler.requests), "an ended request holds blocks"


def check_empty(scheduler: Scheduler) -> None:
    """Check that nothing is left of any request."""
    check_blocks(scheduler)
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
    assert not scheduler.requests
    assert not scheduler.running
    assert len(scheduler.waiting) == 0
    if isinstance(scheduler, StepScheduler) and scheduler.following:
        live = scheduler.live
        tables = {name: table for name, table in vars(live).items() if isinstance(table, dict)}
        assert {"traces", "pending", "kept"} <= set(tables)
        assert not any(tables.values()), "a trace was not forgotten"
        assert not scheduler._pruned_outputs
        assert not scheduler._refused
        assert not scheduler.disabled


def plain(value: object) -> object:
    """Return a value of vLLM's as plain data, without clock times and without what we add."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, msgspec.Struct):
        return {
            name: plain(getattr(value, name))
            for name in value.__struct_fields__
            if name not in ("timestamp", "kv_transfer_params")
        }
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return [plain(item) for item in value]
    if isinstance(value, SamplingParams | FinishReason):
        return str(value)
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return plain(vars(value))
    return value
