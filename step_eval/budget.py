"""The KV budget of an evaluation: one size of KV cache for all methods."""

from dataclasses import dataclass
from pathlib import Path

from step_infer.errors import InputError
from step_infer.storage.files import read_json

RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class Budget:
    """How large the KV cache is, and why."""

    tokens: int | None
    """Size in tokens; None sets no limit but the machine's memory."""
    mean_prompt_tokens: float | None = None
    mean_response_tokens: float | None = None
    source: str | None = None
    """Where the mean response length comes from."""


def fraction_budget(
    fraction: float, num_traces: int, mean_prompt: float, mean_response: float, source: str
) -> Budget:
    """Return the budget that holds a part of what all traces of a mean question need together."""
    tokens = round(fraction * num_traces * (mean_prompt + mean_response))
    return Budget(tokens, mean_prompt, mean_response, source)


def mean_response_tokens(source: Path | str) -> float:
    """Return the mean response length in tokens of earlier traces, none of them pruned.

    Args:
        source: a directory of step-collect, a Parquet file with a list column token_ids, or a
            directory or results.json of step-eval in which the method sc was run.

    Raises:
        InputError: it is none of these, or holds no trace.
    """
    path = Path(source)
    if path.is_dir() and (path / RESULTS_NAME).is_file():
        path = path / RESULTS_NAME
    if path.is_dir():
        parts = sorted((path / "traces").glob("part-*.parquet"))
        if not parts:
            raise InputError(
                f"Expected {RESULTS_NAME} or traces/part-*.parquet in {path}, found neither. "
                "Hint: give a directory that step-collect or step-eval has made."
            )
        return _parquet_mean(parts)
    if not path.is_file():
        raise InputError(
            f"Expected earlier traces at {path}, found no file or directory. "
            "Hint: --lengths-from takes a directory of step-collect or step-eval."
        )
    if path.suffix == ".json":
        return _results_mean(path)
    return _parquet_mean([path])


def _results_mean(path: Path) -> float:
    results = read_json(path)
    try:
        return float(results["methods"]["sc"]["tokens_per_trace"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"Expected the results of step-eval with the method sc in {path}, found none. "
            "Hint: choose a run with sc among its --methods."
        ) from error


def _parquet_mean(paths: list[Path]) -> float:
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    tokens = traces = 0
    for path in paths:
        try:
            column = pyarrow.parquet.read_table(path, columns=["token_ids"])["token_ids"]
            lengths = pyarrow.compute.list_value_length(column)
        except (OSError, KeyError, pyarrow.ArrowException) as error:
            raise InputError(
                f"Expected a Parquet file with a list column token_ids at {path}, found: "
                f"{str(error).splitlines()[0].rstrip('.')}. Hint: choose another --lengths-from."
            ) from error
        tokens += pyarrow.compute.sum(lengths).as_py() or 0
        traces += len(column)
    if tokens == 0:
        raise InputError(
            f"Expected traces with tokens in {paths[0].parent}, found none. "
            "Hint: choose another --lengths-from."
        )
    return tokens / traces
