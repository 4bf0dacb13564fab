"""Join runs that shared the questions of one evaluation."""

from collections.abc import Sequence
from typing import Any

from step_eval.records import QuestionRecord, RecordStore
from step_eval.results import KIND, read_run, write_results
from step_infer.errors import InputError
from step_infer.storage.files import real_path
from step_infer.storage.run_directory import (
    RunDirectory,
    first_difference,
    run_manifest,
    write_manifest,
)

_MAY_DIFFER = frozenset({"shard", "engine.gpu_memory_utilization"})
"""Settings that change no answer and no time: the KV budget is compared by itself."""
_Key = tuple[str, int, str]
"""Method, repeat and question of a record."""


def merge(
    runs: Sequence[str], out: str, vote: str = "auto", paired: bool = False
) -> dict[str, Any]:
    """Join the records of runs with the same settings in a new directory, and report on it.

    Args:
        runs: directories of step-eval, at least one.
        out: the directory to make; made anew where it holds an earlier join.
        vote: vote rule, or "auto".
        paired: keep only what every method has answered; single answers that are missing say
            nothing then.

    Raises:
        InputError: no runs, a setting or the KV budget differs, two runs answered the same
            question, or none was answered by every method where that is asked for.
    """
    if not runs:
        raise InputError(
            "Expected at least one directory of step-eval to merge, found none. "
            "Hint: step-eval merge DIR... --out DIR."
        )
    if real_path(out) in map(real_path, runs):
        raise InputError(
            f"Expected --out to be a new directory, found one of the runs, {out}. "
            "Hint: choose another --out."
        )
    read = [read_run(directory) for directory in runs]
    first = read[0][0]
    records: dict[_Key, QuestionRecord] = {}
    ids: dict[str, None] = {}
    settings: dict[str, Any] = {}
    for directory, (manifest, groups) in zip(runs, read, strict=True):
        _check_same(runs[0], first, directory, manifest)
        settings = manifest["settings"] | settings
        ids |= dict.fromkeys(manifest["question_ids"])
        for record in (record for group in groups.values() for record in group):
            key = (record.method, *record.key)
            if key in records:
                raise InputError(
                    f"Expected each question once for each method and repeat, found "
                    f"{record.question_id} ({record.method}, repeat {record.repeat}) in "
                    f"{directory} and in a run before it. Hint: leave out one of the two."
                )
            records[key] = record
    if paired:
        records = _paired(records)
    with RunDirectory(out, KIND).claim() as merged:
        if merged.manifest and "merged" not in merged.manifest:
            raise InputError(
                f"Expected --out to be empty or an earlier join, found a run in {out}. "
                "Hint: choose another --out."
            )
        store = RecordStore(merged.path)
        for path in store.folder.glob("*.jsonl"):
            path.unlink()
        store.replace_all(records.values())
        manifest = run_manifest(
            # Versions and commit are those that ran, not those that join the records.
            **{
                name: first.get(name)
                for name in ("kind", "model", "budget", "questions", "versions", "git_commit")
            },
            scorer=_first(read, "scorer"),
            card=_first(read, "card"),
            replicas=_first(read, "replicas"),
            device=" + ".join(dict.fromkeys(str(m.get("device")) for m, _ in read)),
            settings={name: settings[name] for name in settings if name not in _MAY_DIFFER},
            question_ids=list(ids),
            repeats=max(m["repeats"] for m, _ in read),
            merged=[
                {"run": directory, "command": m["command"], "created": m["created"]}
                for directory, (m, _) in zip(runs, read, strict=True)
            ],
        )
        write_manifest(merged.path, manifest)
        return write_results(merged.path, vote)


def _paired(records: dict[_Key, QuestionRecord]) -> dict[_Key, QuestionRecord]:
    """Return the records of the questions and repeats that every method has answered."""
    methods = {method for method, _, _ in records}
    answered = [{key[1:] for key in records if key[0] == method} for method in methods]
    common = set.intersection(*answered)
    if not common:
        raise InputError(
            "Expected a question that every method has answered beside --paired, found none "
            f"(methods: {', '.join(sorted(methods))}). Hint: leave --paired out."
        )
    return {key: record for key, record in records.items() if key[1:] in common}


def _check_same(
    first_run: str, first: dict[str, Any], other_run: str, other: dict[str, Any]
) -> None:
    names = sorted((first["settings"].keys() & other["settings"].keys()) - _MAY_DIFFER)
    before, after = (
        {"KV budget": manifest["budget"]["tokens"]}
        | {name: manifest["settings"][name] for name in names}
        for manifest in (first, other)
    )
    name = first_difference(before, after)
    if name is not None:
        raise InputError(
            f"Expected runs with the same settings, found {name} {before[name]!r} in "
            f"{first_run} and {after[name]!r} in {other_run}. "
            "Hint: run one again with the settings of the other."
        )


def _first(read: Sequence[tuple[dict[str, Any], Any]], name: str) -> Any:
    return next((m[name] for m, _ in read if m.get(name) is not None), None)
