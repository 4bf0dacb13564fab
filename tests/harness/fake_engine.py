"""An engine for tests that only pretends: traces of random length in a small KV cache.

It has the surface of `StepLLM`. Its clock is its own: one step is 10 ms. When the cache is full it
puts the newest trace back (plain), or stops the one of the lowest score, or whatever victim is
asked for. A closed vote ends all traces after the step.
"""

import json
import random
from dataclasses import dataclass, field

from step_eval.methods.victims import victim_rank
from step_infer.client.engine import EngineStats
from step_infer.client.trace import Trace, TracePlan, trace_seed
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import ScorerCard
from step_infer.scorer.identity import identify
from step_infer.scorer.network import StepScorer, save_scorer

STEP_TOKENS = 10
STEP_SECONDS = 0.01


@dataclass
class Fate:
    """How a trace goes, known from its seed: the same under every method."""

    length: int
    right: bool
    scores: list[float]
    tokens: list[int]
    wrong_answer: str


@dataclass
class FakeRun:
    plan: TracePlan
    fate: Fate
    done: int = 0
    history: list[int] = field(default_factory=list)


class FakeEngine:
    """See the module."""

    def __init__(self, model, *, kv_budget_tokens=None, plain=False, scorer=None, **options):
        self.model = model
        self.options = options
        self.plain = plain
        self.victim = options.get("additional_config", {}).get("step_eval", {}).get("victim")
        self.kv_capacity_tokens = kv_budget_tokens or 1_000_000
        self.time_s = 0.0
        self.preemptions = 0
        self.running: list[FakeRun] = []
        self.waiting: list[FakeRun] = []
        self.closed = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def plan(self, question_id, question, n, sampling, seed, system, **_):
        prompt = tuple(range(20))
        return [
            TracePlan(question_id, i, prompt, trace_seed(seed, question_id, i), sampling, "g")
            for i in range(n)
        ]

    def stats(self):
        return EngineStats(
            self.time_s,
            self._held() / self.kv_capacity_tokens,
            len(self.running),
            len(self.waiting),
            self.preemptions,
        )

    def stream(self, plans, max_in_flight, on_step=None):
        self.waiting = [FakeRun(plan, fate_of(plan)) for plan in plans]
        vote = plans[0].vote
        while self.waiting or self.running:
            while self.waiting and self._held() + 60 < self.kv_capacity_tokens:
                self.running.append(self.waiting.pop(0))
            yield from self._make_room()
            self.time_s += STEP_SECONDS
            for run in list(self.running):
                run.done = min(run.done + STEP_TOKENS, run.fate.length)
                if run.done == run.fate.length:
                    self.running.remove(run)
                    yield self._trace(run, "stop")
            if vote is not None and vote.check(self.time_s) is not None:
                ended, self.running, self.waiting = [*self.running, *self.waiting], [], []
                for run in ended:
                    yield self._trace(run, vote.closed)
            if on_step is not None:
                on_step()

    def _held(self):
        return sum(20 + run.done for run in self.running)

    def _make_room(self):
        while self._held() + STEP_TOKENS * len(self.running) > self.kv_capacity_tokens:
            if self.plain:
                run = self.running.pop()
                self.waiting.insert(0, run)
                self.preemptions += 1
            else:
                run = min(self.running, key=self._value)
                self.running.remove(run)
                yield self._trace(run, "pruned")

    def _value(self, run):
        if self.victim is None:
            return self._scores(run, 1)[-1]
        rank = run.plan.options.get("rank")
        return victim_rank(self.victim, run.done, self._confidence(run), rank)

    def _confidence(self, run):
        return 10 * run.fate.scores[0] if self.options.get("confidence") else None

    def _scores(self, run, least=0):
        return run.fate.scores[: max(run.done // 50, least)]

    def _trace(self, run, reason):
        scores = [] if self.plain else self._scores(run)
        positions = list(range(49, run.done - 1, 50))
        answer = "7" if run.fate.right else run.fate.wrong_answer
        return Trace(
            run.plan.question_id,
            run.plan.trace_id,
            run.plan.seed,
            list(run.plan.prompt_token_ids),
            run.fate.tokens[: run.done],
            "text",
            reason,
            answer if reason == "stop" else None,
            positions,
            scores[: len(positions)],
            sum(scores) / len(scores) if scores else None,
            mean_token_confidence=self._confidence(run),
            submitted_s=0.0,
            finished_s=self.time_s,
        )


def fate_of(plan):
    """Return what a trace's seed has in store for it."""
    rng = random.Random(plan.seed)
    if plan.sampling.max_tokens <= 16:  # the warm-up
        return Fate(plan.sampling.max_tokens, False, [0.5], [1] * 16, "0")
    hard = random.Random(plan.question_id).uniform(-0.3, 0.3)
    right = rng.random() < 0.5 - hard
    length = rng.randint(300, 700) + (0 if right else 300)
    drift = 0.6 if right else -0.6
    scores = []
    for step in range(length // 50 + 1):
        progress = step * 50 / length
        logit = drift * 3 * progress - 3 * hard + rng.gauss(0, 0.8)
        scores.append(1 / (1 + 2.718281828**-logit))
    tokens = [rng.randrange(3, 100) for _ in range(length)]
    return Fate(length, right, scores, tokens, rng.choice(["3", "4", "5"]))


def made_up_model(folder, hidden_size=32):
    """Write what is read of a model before its engine starts: configuration and tokenizer."""
    from data_gen.ledger.tokenizer import build_tokenizer

    build_tokenizer().save_pretrained(folder)
    config = {
        "model_type": "qwen3",
        "hidden_size": hidden_size,
        "max_position_embeddings": 4096,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def made_up_scorer(path, model):
    """Write an untrained scorer for a model."""
    identity = identify(model)
    rule = BoundaryRule("blank_line", frozenset({6}), 4, r"\n\n")
    card = ScorerCard(
        model,
        identity.config_hash,
        identity.tokenizer_hash,
        identity.hidden_size,
        rule.to_dict(),
        width=8,
        training={"questions": 40},
        metrics={"auroc": 0.8},
    )
    save_scorer(path, StepScorer(identity.hidden_size, 8), card)
    return str(path)


def write_questions(path, count):
    """Write questions whose answer is 7."""
    lines = [{"id": f"q{i:03d}", "question": f"{i} and?", "answer": "7"} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)
