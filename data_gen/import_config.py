"""Settings of an import of traces that were made elsewhere."""

from dataclasses import dataclass, field
from typing import Any

from step_infer.boundary import BoundaryOptions
from step_infer.errors import InputError
from step_infer.grading import check_grading
from step_infer.prompt import SYSTEM_PROMPT


@dataclass(frozen=True)
class ImportConfig:
    """Everything that `step-collect import` can be told."""

    responses: str
    """A file (JSON lines, .csv or .parquet) or a data set of the Hugging Face hub as
    org/name[:config][@split]; each row has a question, a response or a list of them, and the right
    answer."""
    model: str
    """Model folder or Hugging Face id of the model that made the responses."""
    out: str
    """Traces directory to make, or to go on with after an interruption."""
    question_field: str = "question"
    """Field of the question's text; rows with the same text are one question."""
    response_field: str = "response"
    """Field of the response, or of a list of responses, thinking part included."""
    answer_field: str = "ground_truth"
    """Field of the right answer."""
    system: str = SYSTEM_PROMPT
    """System text of the chat prompt that was used; an empty text leaves it out."""
    boundary: BoundaryOptions = field(default_factory=BoundaryOptions)
    """What ends a step."""
    skip_bad_lines: bool = False
    """Leave out rows that cannot be used, and count them, where the default is to stop."""
    part_traces: int = 256
    """Traces that are written at a time; what is not yet written is lost in a crash."""
    grading_workers: int = 1
    """Processes that compare answers."""
    grading_timeout_s: float = 10.0
    """Seconds for one comparison; after that the answer counts as ungradable."""

    def __post_init__(self) -> None:
        check_grading(self.grading_timeout_s, self.grading_workers)
        if self.part_traces < 1:
            raise InputError(f"Expected --part-traces of at least 1, found {self.part_traces}.")

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the content, flat and JSON-ready."""
        names = ("question_field", "response_field", "answer_field", "system", "skip_bad_lines")
        return {name: getattr(self, name) for name in names}
