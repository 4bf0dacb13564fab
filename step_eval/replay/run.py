"""`step-eval replay`: recorded traces on a real engine of real size, with random weights.

Time, preemptions and pruning are the engine's; lengths, boundaries, scores and answers are those of
recorded traces, scaled. The run is an evaluation like any other, on such engines.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_gen.questions.load import Question, QuestionSet
from step_eval.inputs import EvalInputs
from step_eval.methods.registry import find_method
from step_eval.recorded.files import read_pool
from step_eval.recorded.traces import PoolQuestion, TracePool
from step_eval.replay.config import ReplayConfig
from step_eval.replay.engine import as_answered, chosen_traces, starter
from step_eval.replay.shapes import NO_WEIGHTS, model_folder, read_shape, write_model, write_scorer
from step_eval.run import Evaluation
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.identity import digest, identify
from step_infer.scorer.network import read_card
from step_infer.storage.files import sha256_file
from step_infer.storage.run_directory import MANIFEST_NAME

_ROUND_CONTEXT = 16
_ANY_STEP = BoundaryRule("stride", frozenset(), None, None, 64)
"""Stands where a rule is asked for: recorded boundaries count, the rule is not used."""


@dataclass(frozen=True)
class ReplayInputs(EvalInputs):
    """Recorded traces as the inputs of an evaluation."""

    decided: dict[str, Any]
    """What must agree when a run goes on, beside the evaluation's own settings."""
    recorded: dict[str, PoolQuestion]
    """The recorded traces of each question, by its id."""

    def right_traces(self, repeat: int, question_id: str) -> list[bool]:
        """Return whether each trace that a question has in a repeat was right."""
        config = self.config
        question = self.recorded[question_id]
        traces = chosen_traces(question, config.num_traces, repeat, config.seed)
        return [trace.right for trace in traces]

    def settings(self) -> dict[str, Any]:
        """Return everything that must agree when a run goes on, flat and JSON-ready."""
        settings = super().settings() | self.decided
        settings.pop("scorer_sha256", None)  # the file is written anew for each run
        return settings


def read_traces(config: ReplayConfig) -> tuple[TracePool, float]:
    """Return the recorded traces at the length asked for, and the factor on their lengths.

    Raises:
        InputError: they cannot be read, lack the right answers, or lack the scores or confidences
            that a method needs.
    """
    pool = read_pool(config.traces)
    without = [question.question_id for question in pool.questions if question.truth is None]
    if without:
        raise InputError(
            f"Expected a ground truth for every question in {config.traces}, found none for "
            f"{without[0]}. Hint: collect traces of questions that have answers."
        )
    pool = replace(pool, questions=tuple(as_answered(question) for question in pool.questions))
    needing = [name for name in config.method_names if find_method(name).needs_scorer]
    if needing and not pool.scored:
        raise InputError(
            f"Expected recorded step scores in {config.traces} for the method {needing[0]}, found "
            "none. Hint: collect the traces with step-collect --scorer."
        )
    unsure = [name for name in config.method_names if find_method(name).needs_confidence]
    if unsure and not pool.confident:
        raise InputError(
            f"Expected recorded confidences in {config.traces} for the method {unsure[0]}, found "
            "none. Hint: collect the traces with step-collect, which records them."
        )
    factor = config.length_scale
    if config.mean_tokens is not None:
        factor = config.mean_tokens / pool.mean_response_tokens
    return pool.scaled(factor), factor


def prepare(config: ReplayConfig) -> tuple[ReplayInputs, TracePool]:
    """Read the traces, write the model without weights and its scorer; no engine starts here.

    Raises:
        InputError: an input cannot be used.
    """
    shape = read_shape(config.shape)
    pool, factor = read_traces(config)
    longest = max(q.prompt_tokens + t.tokens for q in pool.questions for t in q.traces)
    context = -(-(longest + 1) // _ROUND_CONTEXT) * _ROUND_CONTEXT
    most = (shape.get("text_config") or shape).get("max_position_embeddings")
    limit = config.engine.get("max_model_len", most)
    if limit is not None and longest > limit:
        raise InputError(
            f"Expected traces of at most {limit} tokens with their prompt, found {longest}. "
            "Hint: lower --length-scale or --mean-tokens."
        )
    model = model_folder(shape)
    write_model(model, shape)
    aggregator = config.aggregator or pool.aggregator or "mean"
    scorer = None
    if pool.scored:
        size = sha256_file(config.scorer)[:16] if config.scorer else "random"
        scorer = model.parent / f"{size}-{aggregator}.safetensors"
        write_scorer(scorer, model, config.shape, _ANY_STEP, aggregator, config.scorer)
    engine = {
        **NO_WEIGHTS,
        "max_model_len": min(context, limit or context),
        "max_num_seqs": config.num_traces,
        **config.engine,
    }
    traces = Path(config.traces)
    checksum = sha256_file(traces if traces.is_file() else traces / MANIFEST_NAME)
    evaluation = config.evaluation(model, scorer, engine, pool.answers)
    identity = replace(
        identify(str(model)), model=f"{config.shape} with random weights (replay of {pool.source})"
    )
    prompts = [question.prompt_tokens for question in pool.questions]
    card = None if scorer is None else read_card(scorer)
    inputs = ReplayInputs(
        evaluation,
        QuestionSet(
            [Question(q.question_id, "", q.truth) for q in pool.questions[: config.limit]],
            [],
            checksum,
        ),
        identity,
        card,
        None if card is None else card.boundary_rule,
        sum(prompts) / len(prompts),
        pool.mean_response_tokens,
        {
            "replay.shape": digest(shape),
            "replay.factor": factor,
            "replay.scorer": config.scorer and sha256_file(config.scorer),
        },
        {question.question_id: question for question in pool.questions},
    )
    return inputs, pool


def replay(config: ReplayConfig, console: Console | None = None) -> dict[str, Any]:
    """Run recorded traces on one engine a method, and write records, results and report.

    Raises:
        InputError: an input or the output directory cannot be used, or the engine refuses a
            setting.
    """
    console = console or Console(soft_wrap=True)
    inputs, pool = prepare(config)
    console.print(
        f"Replay of {pool.source}: {pool.mean_response_tokens:,.0f} tokens a trace on average "
        f"(x {inputs.decided['replay.factor']:.3g}), on an engine in the shape of "
        f"{config.shape} with random weights: time is real, text is not.",
        highlight=False,
    )
    start = starter(read_shape(config.shape), pool, config.seed)
    return Evaluation(inputs.config, start, console, inputs).run()
