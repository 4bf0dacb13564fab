"""Answers in a canonical form, in which equal ones can be told without another library."""

from step_infer.client.canonical.answer import LONGEST_ANSWER, canonical
from step_infer.client.canonical.fallback import is_explosive, math_verify_reads
from step_infer.client.canonical.form import Canonical, equal, identity
from step_infer.client.canonical.markup import boxed, mend_escapes

__all__ = [
    "LONGEST_ANSWER",
    "Canonical",
    "boxed",
    "canonical",
    "equal",
    "identity",
    "is_explosive",
    "math_verify_reads",
    "mend_escapes",
]
