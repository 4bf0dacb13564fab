"""Answer kinds: how an answer is found in a response, and when two answers are the same."""

from step_infer.client.kinds.kind import OPEN, AnswerKind, Open, final_part
from step_infer.client.kinds.options import KINDS, AnswerOptions, find_kind

__all__ = ["KINDS", "OPEN", "AnswerKind", "AnswerOptions", "Open", "final_part", "find_kind"]
