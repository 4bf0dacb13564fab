"""Every use of vLLM internals that differs, or may come to differ, between versions.

Found by feature, never by version number. Each piece says why it is here and when it can go.
"""

import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.compilation.cuda_graph import CUDAGraphStat
from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from step_infer.wire import COUNTS_PREFIX


def held_blocks(kv_cache_manager: Any, request_id: str) -> list[int]:
    """Return how many blocks a request holds in each KV cache group.

    Reads the managers' tables: the public `get_block_ids` builds a list of every id, which costs
    time for each running request and step. Can go when vLLM offers a count.
    """
    managers = kv_cache_manager.coordinator.single_type_managers
    return [len(manager.req_to_blocks.get(request_id, ())) for manager in managers]


def growth_blocks(scheduler: Any) -> int:
    """Return an upper bound of the new KV blocks that the running requests need in this step.

    Follows vLLM's own loop over its running requests (Scheduler.schedule): the same order, token
    budget and exceptions. With speculative decoding a request takes blocks for its drafts, and for
    those that its drafter looks ahead to; of rejected ones it keeps them. Can go when vLLM can be
    asked before it preempts.
    """
    budget, ahead = scheduler.max_num_scheduled_tokens, _tokens_ahead(scheduler)
    threshold = _long_prefill_threshold(scheduler)
    max_model_len, step = scheduler.max_model_len, scheduler.current_step + 1
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    grain = math.gcd(*(manager.block_size for manager in managers))
    growing = running = scheduler.running
    if not ahead and not scheduler.num_spec_tokens and len(running) <= budget:
        # A request in decode needs a block only where the last one is full: no look at the others,
        # unless the budget may run out before a later one's turn.
        growing = [r for r in running if r.is_prefill_chunk or r.num_computed_tokens % grain == 0]
        if any(request.is_prefill_chunk for request in growing):
            growing = running
    needed = 0
    for request in growing:
        if budget <= 0:
            break
        computed, placeholders = request.num_computed_tokens, request.num_output_placeholders
        if (
            placeholders > 0
            and computed + 2 - placeholders >= request.num_prompt_tokens + request.max_tokens
        ):
            continue  # async scheduling: the step in flight is its last
        if step < request.next_decode_eligible_step:
            continue  # pipeline stages with the V2 runner: not its turn
        new = request.num_tokens_with_spec + placeholders - computed
        if 0 < threshold < new:
            new = threshold
        new = min(new, budget)
        if new > max_model_len - computed - 1:
            new = max_model_len - computed - 1
        if new <= 0:
            continue
        budget -= new
        end = min(computed + new + ahead, max_model_len)
        for manager in managers:
            held = len(manager.req_to_blocks.get(request.request_id, ()))
            needed += max(0, cdiv(end, manager.block_size) - held)
    return needed


def ends_in_flight(scheduler: Any, request: Any) -> bool:
    """Return whether a running request's last step is in flight, for its length.

    The same two conditions as in vLLM's loop over its running requests (see `growth_blocks`). With
    pipeline stages a step may be in flight without async scheduling too: then vLLM counts no
    placeholder for its token. Can go when vLLM says so itself.
    """
    placeholders, computed = request.num_output_placeholders, request.num_computed_tokens
    if placeholders == 0 and computed < request.num_tokens_with_spec:
        return False
    return (
        computed + 2 - max(placeholders, 1) >= request.num_prompt_tokens + request.max_tokens
        or computed >= scheduler.max_model_len - 1
    )


def waiting_queues(scheduler: Any) -> list[Any]:
    """Return the queues that new requests are admitted from.

    Older versions keep requests that were passed over in a queue of their own, which can go with
    them. Newer ones have one for requests that hold KV blocks already; it is not among these.
    """
    passed_over = getattr(scheduler, "skipped_waiting", None)
    return [scheduler.waiting] if passed_over is None else [scheduler.waiting, passed_over]


def _long_prefill_threshold(scheduler: Any) -> int:
    """Return how many tokens of one prefill a step may compute; 0 for no limit.

    Newer versions have no limit for a request that is alone, and, where the adaptive setting is
    on, none below its share of the token budget. Can go with the versions that lack that setting.
    """
    config = scheduler.scheduler_config
    threshold = config.long_prefill_token_threshold
    if threshold == 0 or not hasattr(config, "long_prefill_token_threshold_adaptive"):
        return threshold
    requests = sum(scheduler.get_request_counts())
    if requests <= 1:
        return 0
    if config.long_prefill_token_threshold_adaptive:
        return max(threshold, config.max_num_batched_tokens // requests)
    return threshold


def follow_async_setting(scheduler: Any) -> None:
    """Without async scheduling, let an AsyncScheduler do what Scheduler does.

    AsyncScheduler takes the setting as given: it schedules a request's next step before the last
    one's token is known. vLLM chooses the class by the setting, but not where a class is named.
    With pipeline stages, whose steps overlap, the V1 runner would then miss the token that the
    scheduler is to send it; with speculative decoding it would get placeholders for drafts. With
    neither, both classes do the same. Can go when AsyncScheduler looks at the setting.
    """
    differs = scheduler.use_pp or scheduler.num_spec_tokens
    if scheduler.scheduler_config.async_scheduling or not differs:
        return
    for name, value in vars(AsyncScheduler).items():
        if callable(value) and not name.startswith("__"):
            setattr(scheduler, name, getattr(super(AsyncScheduler, scheduler), name))


def free_blocks(scheduler: Any) -> int:
    """Return how many KV blocks are free, cached ones that may be evicted included."""
    return scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def unsupported_features(vllm_config: Any) -> str | None:
    """Return the reason why the adapter must refuse a configuration, or None.

    These features change which rows `compute_logits` receives; scoring would attach scores to the
    wrong traces. Each can go when the adapter reads the changed layout.
    """
    if (reason := _unsupported_drafts(vllm_config)) is not None:
        return reason
    if vllm_config.model_config.runner_type == "pooling":
        return "pooling models (no generated tokens)"
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False):
        return "batch-sharded sampling (rows in another order)"
    parallel = vllm_config.parallel_config
    if parallel.distributed_executor_backend == "external_launcher" and parallel.world_size > 1:
        return "an external launcher over several ranks (each schedules, only one has scores)"
    if parallel.prefill_context_parallel_size > 1:
        return "prefill context parallelism (rows are spread over ranks)"
    if getattr(vllm_config.model_config, "is_diffusion", False):
        return "diffusion language models (no token-by-token generation)"
    transfer = vllm_config.kv_transfer_config
    if transfer is not None and transfer.kv_load_failure_policy == "recompute":
        return 'kv_load_failure_policy "recompute" (a step has rows of blocks that failed to load)'
    return None


DRAFTERS = ("ngram", "draft_model", "eagle", "eagle3", "mtp")
"""Methods of speculative decoding whose rows lie as `step_infer.draft_rows` says."""


def _unsupported_drafts(vllm_config: Any) -> str | None:
    speculative = vllm_config.speculative_config
    if speculative is None:
        return None
    if getattr(speculative, "enable_adaptive_verification", False):
        return "adaptive verification of drafts (rows are moved on the GPU)"
    if speculative.method not in DRAFTERS:
        known = ", ".join(DRAFTERS)
        return f"speculative decoding by {speculative.method} (known are {known})"
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        return "speculative decoding over pipeline stages (not tested)"
    return None


def most_rows(vllm_config: Any) -> int:
    """Return the most rows that a step can have: a request's last token, and its drafts."""
    drafts = 0
    if vllm_config.speculative_config is not None:
        drafts = vllm_config.speculative_config.num_speculative_tokens
    return vllm_config.scheduler_config.max_num_seqs * (1 + drafts)


def most_growth_blocks(scheduler: Any) -> int:
    """Return a bound of `growth_blocks` that costs no look at each request.

    Every request may cross into one new block in each group, and all the step's tokens, with those
    that drafters look ahead to, may fill new blocks. While that fits, memory is not short.
    """
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    running, budget = len(scheduler.running), scheduler.max_num_scheduled_tokens
    budget += running * _tokens_ahead(scheduler)
    return sum(running + cdiv(budget, manager.block_size) for manager in managers)


def _tokens_ahead(scheduler: Any) -> int:
    """Return how many tokens more than those of this step each request needs room for.

    Those that its drafter looks ahead to. With a KV connector and async scheduling also those of
    one more step: vLLM keeps an ended request's blocks while a step in flight may write them.
    """
    ahead = scheduler.num_lookahead_tokens
    if getattr(scheduler, "defer_block_free", False):
        ahead += 1 + scheduler.num_spec_tokens
    return ahead


def own_blocks(kv_cache_manager: Any, request_id: str) -> list[Any]:
    """Return the KV blocks that a request shares with no other.

    Those of them that are still in use when it has ended are kept back, by vLLM or by a KV
    connector that is sending or storing them.
    """
    managers = kv_cache_manager.coordinator.single_type_managers
    held = (manager.req_to_blocks.get(request_id, ()) for manager in managers)
    return [b for blocks in held for b in blocks if b.ref_cnt == 1 and not b.is_null]


def has_front_end(vllm_config: Any) -> bool:
    """Return whether `send_counts` may reach a front end: one in another process, with room for it.

    Within one process nobody listens, and vLLM's statistics stay exactly its own.
    """
    if vllm_config.observability_config.cudagraph_metrics:
        return False
    ray = vllm_config.parallel_config.data_parallel_backend == "ray"  # an actor has no parent
    return ray or multiprocessing.parent_process() is not None


def send_counts(stats: Any, text: str) -> None:
    """Put a text into a step's SchedulerStats, to travel to the front end's stat loggers.

    The statistics have no field for plug-ins; this takes one that is empty, and that nobody reads
    unless vLLM's `cudagraph_metrics` are on. Can go when there is such a field.
    """
    if getattr(stats, "cudagraph_stats", text) is None:
        stats.cudagraph_stats = CUDAGraphStat(0, 0, 0, COUNTS_PREFIX + text)


def received_counts(stats: Any) -> str | None:
    """Return the text that `send_counts` put into a step's SchedulerStats; None without one."""
    stat = getattr(stats, "cudagraph_stats", None)
    if stat is None or not stat.runtime_mode.startswith(COUNTS_PREFIX):
        return None
    return stat.runtime_mode.removeprefix(COUNTS_PREFIX)


@contextmanager
def held_back(queues: Iterable[Any], holds: Callable[[Any], bool]) -> Iterator[int]:
    """Take requests out of the waiting queues for one call of vLLM's scheduler, then put them back.

    A queue is any of vLLM's, first come first served or by priority; every request that was not
    admitted stands in its old place afterwards, and those preempted meanwhile before them.

    Args:
        queues: the scheduler's waiting queues.
        holds: says whether a request is held back.

    Returns:
        How many are held back.
    """
    taken: list[tuple[Any, list[Any], set[Any]]] = []
    for queue in queues:
        order = list(queue)
        held = {request for request in order if holds(request)}
        if held:
            queue.remove_requests(held)
            taken.append((queue, order, held))
    try:
        yield sum(len(held) for _, _, held in taken)
    finally:
        for queue, order, held in taken:
            left = list(queue)
            queue.remove_requests(left)
            known, waiting = set(order), held.union(left)
            returned = [request for request in left if request not in known]  # preempted meanwhile
            for request in returned + [request for request in order if request in waiting]:
                queue.add_request(request)
