"""Which trace a method stops first, where that follows from a number given with each trace."""

from collections.abc import Iterable, Mapping, Sequence

from data_gen.questions.load import Question
from step_eval.inputs import EvalInputs
from step_eval.methods.registry import BASELINE
from step_eval.methods.victims import oracle_ranks, random_ranks
from step_eval.records import RecordStore
from step_eval.results import read_run
from step_infer.errors import InputError

ORACLE, RANDOM = "oracle", "random"
Verdicts = Mapping[int, bool]
"""Whether a trace comes out right, by its number."""
_SAME = (
    *("seed", "system", "chat_template_kwargs", "model_config_hash", "tokenizer_hash"),
    *("questions_sha256", "sampling."),
)
"""Settings that make traces of the same number twins, or their beginnings."""


class Ranks:
    """Ranks of the traces of each question, for the methods whose victims go by rank.

    The oracle has to know which traces will come out right: from the inputs (a replay), else from
    the records of the method sc, whose traces have the same seeds.
    """

    def __init__(self, inputs: EvalInputs) -> None:
        self._inputs = inputs
        self._from = inputs.config.oracle_from or inputs.config.out
        self._known: dict[tuple[int, str], Verdicts] = {}

    def answerable(
        self, asked: Sequence[tuple[int, Question]], coming: Iterable[tuple[int, Question]]
    ) -> list[tuple[int, Question]]:
        """Return the questions that the oracle can answer: all, but for a run it was pointed to.

        Args:
            asked: repeats and questions that the oracle has to answer.
            coming: those that the method sc answers before it in this run.

        Raises:
            InputError: it does not know one of them, or, of a run that it was pointed to, any.
        """
        run = self._inputs.config.oracle_from
        if run is None:
            before = {(repeat, question.id) for repeat, question in coming}
            unknown = [(r, q) for r, q in asked if (r, q.id) not in before]
            for repeat, question in unknown:
                self._verdicts(repeat, question)
            return list(asked)
        if asked:
            self._check_twins(run)
        known = [(r, q) for r, q in asked if self._find(r, q) is not None]
        if asked and not known:
            self._verdicts(*asked[0])
        return known

    def _check_twins(self, run: str) -> None:
        """See that a run's traces have the seeds and the questions of this one."""
        theirs = read_run(run)[0]["settings"]
        for name, value in self._inputs.settings().items():
            if name.startswith(_SAME) and theirs.get(name) != value:
                raise InputError(
                    f"Expected --oracle-from a run with the same {name} ({value!r}), found "
                    f"{theirs.get(name)!r} in {run}. Hint: choose another --oracle-from."
                )

    def for_question(self, method: str, repeat: int, question: Question) -> dict[int, float]:
        """Return the rank of each trace by its number; none for a method that needs no ranks.

        Raises:
            InputError: the oracle does not know the question.
        """
        config = self._inputs.config
        if method == RANDOM:
            ranks = random_ranks(config.seed + repeat, question.id, config.num_traces)
            return dict(enumerate(ranks))
        if method == ORACLE:
            verdicts = self._verdicts(repeat, question)
            return dict(zip(verdicts, oracle_ranks(verdicts.values()), strict=True))
        return {}

    def _verdicts(self, repeat: int, question: Question) -> Verdicts:
        found = self._find(repeat, question)
        if found is None:
            raise InputError(
                f"Expected the method sc to have answered question {question.id}, repeat {repeat}, "
                f"before the method oracle, found no record of all its traces in {self._from}. "
                "Hint: --methods sc,oracle, or --oracle-from DIR."
            )
        return found

    def _find(self, repeat: int, question: Question) -> Verdicts | None:
        right = self._inputs.right_traces(repeat, question.id)
        if right is not None:
            return dict(enumerate(right))
        key = (repeat, question.id)
        if key not in self._known:
            for record in RecordStore(self._from).read([BASELINE])[BASELINE]:
                if len(record.traces) >= self._inputs.config.num_traces:
                    verdicts = {trace.trace_id: trace.correct is True for trace in record.traces}
                    self._known[record.key] = verdicts
        return self._known.get(key)
