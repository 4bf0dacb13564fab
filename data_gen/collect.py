"""Collect traces: sample, grade and write them, with their states, resumably."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from data_gen.collection import Collection
from data_gen.config import CollectConfig
from data_gen.questions.load import QuestionSet, load_questions, shard_questions
from data_gen.summary import print_summary, summarise
from data_gen.traces.groups import AnswerGroups
from data_gen.traces.writer import TraceWriter
from step_infer.client.engine import engine_revision
from step_infer.client.grading import Grader
from step_infer.client.llm import StepLLM
from step_infer.client.prompt import (
    context_length,
    load_tokenizer,
    prompt_lengths,
    system_note,
)
from step_infer.replicas.options import LOGS_FOLDER
from step_infer.replicas.pool import ReplicaPool
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.identity import ModelIdentity, identify
from step_infer.scorer.network import load_scorer
from step_infer.storage.files import real_path, sha256_file


def collect(
    config: CollectConfig,
    start_engine: Callable[..., StepLLM | ReplicaPool] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Sample, grade and write the traces of all questions; go on where an earlier run stopped.

    Args:
        config: the settings.
        start_engine: makes the engine, called like `StepLLM`; None is `StepLLM`, or a
            `ReplicaPool` where the settings ask for one.
        console: where the estimate and the summary go; None is standard output.

    Returns:
        The summary (see `data_gen.summary.summarise`), which the manifest keeps as well.

    Raises:
        InputError: an input, a setting or the output directory cannot be used.
    """
    console = console or Console(soft_wrap=True)
    with config.connected():
        return _collect(config, start_engine, console)


def _collect(
    config: CollectConfig,
    start_engine: Callable[..., StepLLM | ReplicaPool] | None,
    console: Console,
) -> dict[str, Any]:
    found = load_questions(
        config.questions, config, require_answer=not config.no_answers, note=console.print
    )
    questions = shard_questions(found.questions, config.shard)
    revision = engine_revision(config.engine)
    identity = identify(config.model, revision)
    tokenizer = load_tokenizer(config.model, revision)
    if config.scorer is not None:
        card = load_scorer(config.scorer, identity, config.allow_mismatch)[1]
        rule = card.boundary_rule
        config.boundary.check_scorer(rule)
    else:
        rule = config.boundary.rule(tokenizer)
    context = context_length(config.model, config.engine.get("max_model_len"), revision)
    # A prompt that does not fit is found now, not in the middle of the run.
    texts = {q.id: q.question for q in questions}
    prompt_lengths(tokenizer, texts, config.system, context, config.chat_template_kwargs)
    note = system_note(tokenizer, questions[0].question, config.system, config.chat_template_kwargs)
    if note is not None:
        console.print(f"[bold]note:[/] {note}", highlight=False)
    settings = config.result_settings() | {
        "model_config_hash": identity.config_hash,
        "tokenizer_hash": identity.tokenizer_hash,
        "questions_sha256": found.sha256,
        "scorer_sha256": None if config.scorer is None else sha256_file(config.scorer),
        "boundary": rule.to_dict(),
    }
    with (
        TraceWriter(config.out, settings, **_described(config, identity, rule, found)) as out,
        Grader(config.grading_processes, answers=config.answer_options) as grader,
    ):
        collection = Collection(config, identity, questions, out, console)
        collection.print_start(context)
        groups = AnswerGroups(grader, out.read())
        if collection.missing:
            if start_engine is None:
                start_engine = _replicated(config) if config.uses_ray else StepLLM
            collection.run(start_engine, rule, grader, groups)
        out.regroup(groups.changed())
        summary = summarise(out.read())
        summary["skipped_lines"] = len(found.skipped)
        out.finish(summary=summary)
    print_summary(summary, console)
    console.print(f"Traces: {config.out}")
    return summary


def _replicated(config: CollectConfig) -> Callable[..., ReplicaPool]:
    return partial(
        ReplicaPool,
        replicas=config.replicas,
        address=config.ray_address,
        log_dir=Path(config.out) / LOGS_FOLDER,
    )


def _described(
    config: CollectConfig,
    identity: ModelIdentity,
    rule: BoundaryRule,
    found: QuestionSet,
) -> dict[str, Any]:
    """Return the manifest's fields for readers of the directory."""
    return {
        "model": identity.model,
        "identity": {
            "config_hash": identity.config_hash,
            "tokenizer_hash": identity.tokenizer_hash,
            "hidden_size": identity.hidden_size,
            "revision": identity.revision,
        },
        "boundary": rule.to_dict(),
        "sampling": vars(config.sampling).copy(),
        "seed": config.seed,
        "system": config.system,
        "chat_template_kwargs": config.chat_template_kwargs,
        "prompt_date": datetime.now().isoformat(timespec="seconds"),
        "num_traces": config.num_traces,
        "questions": {
            "source": _source(config.questions),
            "benchmark": config.benchmark,
            "sha256": found.sha256,
            "count": len(found.questions),
        },
        "scorer": config.scorer,
        "engine": config.engine,
    }


def _source(questions: str) -> str:
    return str(real_path(questions)) if Path(questions).exists() else questions
