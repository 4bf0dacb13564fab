"""How hard the demo world is: what its reasoner scores, alone and by majority."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data_gen.ledger.questions import Question
from data_gen.ledger.reasoner import Reasoner
from data_gen.ledger.tokenizer import encode_array


@dataclass(frozen=True)
class WorldStatistics:
    """Scores of a reasoner or model on some questions; accuracies are shares of 1."""

    questions: int
    """Questions asked."""
    traces: int
    """Traces a question, N."""
    single: float
    """Share of right traces."""
    majority: float
    """Share of questions whose most common answer is right; a tie counts by its right share."""
    any_right: float
    """Share of questions with at least one right trace."""
    tokens: float
    """Mean length of a response, tokens."""
    tokens_right: float
    """Mean length of right responses, tokens."""
    tokens_wrong: float
    """Mean length of wrong responses, tokens."""
    tokens_max: int
    """Longest response, tokens."""

    def __str__(self) -> str:
        """Return the figures in four short lines."""
        return (
            f"{self.questions} questions, {self.traces} traces each\n"
            f"right: single {self.single:.1%}, majority {self.majority:.1%}, "
            f"any {self.any_right:.1%}\n"
            f"tokens: mean {self.tokens:.0f}, right {self.tokens_right:.0f}, "
            f"wrong {self.tokens_wrong:.0f}, longest {self.tokens_max}"
        )


def majority_credit(answers: Sequence[int | str], truth: int | str) -> float:
    """Return 1 where the most common answer is right, 1/k where it ties with k-1 others, else 0."""
    counts = Counter(answers)
    top = max(counts.values())
    tied = [answer for answer, count in counts.items() if count == top]
    return 1 / len(tied) if truth in tied else 0.0


def world_statistics(
    questions: Sequence[Question],
    traces: int = 64,
    *,
    reasoner: Reasoner | None = None,
    seed: int = 0,
) -> WorldStatistics:
    """Let the reasoner answer each question `traces` times, and count."""
    reasoner = reasoner or Reasoner()
    rng = random.Random(f"ledger/statistics/{seed}")
    majority = any_right = 0.0
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for question in questions:
        answers = []
        for _ in range(traces):
            trace = reasoner.trace(question.numbers, rng)
            answers.append(str(trace.answer))
            # One more token ends the turn.
            lengths[trace.correct].append(len(encode_array(trace.text)) + 1)
        majority += majority_credit(answers, question.answer)
        any_right += question.answer in answers
    right, wrong = lengths[True], lengths[False]
    both = right + wrong
    return WorldStatistics(
        questions=len(questions),
        traces=traces,
        single=len(right) / len(both),
        majority=majority / len(questions),
        any_right=any_right / len(questions),
        tokens=sum(both) / len(both),
        tokens_right=sum(right) / max(len(right), 1),
        tokens_wrong=sum(wrong) / max(len(wrong), 1),
        tokens_max=max(both),
    )
