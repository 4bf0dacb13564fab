"""The inputs of an evaluation, read and checked before any engine starts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_gen.questions.load import Question, QuestionSet, load_questions, shard_questions
from step_eval.budget import mean_response_tokens
from step_eval.config import EvalConfig
from step_infer.client.engine import engine_revision
from step_infer.client.prompt import (
    context_length,
    load_tokenizer,
    prompt_lengths,
    system_note,
)
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import ScorerCard
from step_infer.scorer.identity import ModelIdentity, identify
from step_infer.scorer.network import load_scorer
from step_infer.storage.files import sha256_file


@dataclass(frozen=True)
class EvalInputs:
    """What the settings name."""

    config: EvalConfig
    question_set: QuestionSet
    """All questions of the source, up to the limit; a shard asks only its part of them."""
    identity: ModelIdentity
    card: ScorerCard | None
    rule: BoundaryRule | None
    """What ends a step, for every method; None where recorded signals say it."""
    mean_prompt_tokens: float
    mean_response_tokens: float | None
    """Of earlier traces, where the settings name any and the KV budget depends on it."""

    @property
    def questions(self) -> list[Question]:
        """All questions, those of other shards too."""
        return self.question_set.questions

    @property
    def mine(self) -> list[Question]:
        """The questions of this shard."""
        return shard_questions(self.questions, self.config.shard)

    def right_traces(self, repeat: int, question_id: str) -> list[bool] | None:
        """Return whether each trace of a question comes out right, where that is known before."""
        return None

    def settings(self) -> dict[str, Any]:
        """Return everything that must agree when a run goes on, flat and JSON-ready."""
        config = self.config
        settings = config.result_settings() | {
            "shard": config.shard,
            "model_config_hash": self.identity.config_hash,
            "tokenizer_hash": self.identity.tokenizer_hash,
            "questions_sha256": self.question_set.sha256,
        }
        if config.scorer is not None:
            settings["scorer_sha256"] = sha256_file(config.scorer)
        return settings


def load_inputs(config: EvalConfig, note: Callable[[str], None]) -> EvalInputs:
    """Read and check questions, model, scorer, prompts and earlier lengths.

    Args:
        config: the settings.
        note: called with what the user should know.

    Raises:
        InputError: one of them cannot be used.
    """
    found = load_questions(config.questions, config, note=note)
    questions = found.questions
    shard_questions(questions, config.shard)  # an empty shard is refused before any engine starts
    revision = engine_revision(config.engine)
    identity = identify(config.model, revision)
    card = None
    if config.scorer is not None:
        _, card = load_scorer(config.scorer, identity, config.allow_mismatch)
        config.boundary.check_scorer(card.boundary_rule)
    tokenizer = load_tokenizer(config.model, revision)
    rule = card.boundary_rule if card is not None else config.boundary.rule(tokenizer)
    lengths = prompt_lengths(
        tokenizer,
        {question.id: question.question for question in questions},
        config.system,
        context_length(config.model, config.engine.get("max_model_len"), revision),
        config.chat_template_kwargs,
    )
    moved = system_note(
        tokenizer, questions[0].question, config.system, config.chat_template_kwargs
    )
    if moved is not None:
        note(f"[bold]note:[/] {moved}")
    earlier = config.lengths_from if config.needs_lengths else None
    return EvalInputs(
        config,
        found,
        identity,
        card,
        rule,
        sum(lengths) / len(lengths),
        None if earlier is None else mean_response_tokens(earlier),
    )
