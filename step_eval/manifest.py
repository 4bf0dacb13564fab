"""The manifest of an evaluation: what it is, and whether a run may go on in its directory."""

import os
import platform
from collections.abc import Mapping
from typing import Any

from step_eval.budget import Budget
from step_eval.inputs import EvalInputs
from step_eval.results import KIND
from step_infer.errors import InputError
from step_infer.storage.run_directory import RunDirectory, first_difference, run_manifest


def earlier_manifest(
    run: RunDirectory, settings: Mapping[str, Any], begun: bool
) -> dict[str, Any] | None:
    """Return the manifest of the run that goes on in a directory, or None for a new run.

    Args:
        run: the directory.
        settings: the settings of now.
        begun: whether the directory holds records. A run that answered nothing, such as one whose
            engine refused to start, gives way to other settings.

    Raises:
        InputError: its run has other settings.
    """
    manifest = run.manifest
    if not manifest:
        return None
    # A method that joins a run may bring settings of its own, such as the scorer.
    kept = manifest["settings"]
    engine = {name for name in kept.keys() | settings.keys() if name.startswith("engine.")}
    names = sorted((kept.keys() & settings.keys()) | engine)
    before, after = ({name: part.get(name) for name in names} for part in (kept, settings))
    name = first_difference(before, after)
    if name is None:
        return manifest
    if not begun:
        return None
    raise InputError(
        f"Expected the settings of the run in {run.path}, found {name} {after[name]!r} "
        f"where it has {before[name]!r}. Hint: choose another --out."
    )


def make_manifest(
    inputs: EvalInputs, budget: Budget, earlier: Mapping[str, Any] | None, prompt_date: str
) -> dict[str, Any]:
    """Return the manifest of a run that begins, or goes on from an earlier manifest.

    Args:
        inputs: what the settings name.
        budget: the KV budget.
        earlier: manifest of the run that goes on; None for a new one.
        prompt_date: the date that the prompts tell, where the chat template asks for it.
    """
    config = inputs.config
    before = earlier or {}
    ids = [question.id for question in inputs.questions]
    kept = [name for name in before.get("question_ids", []) if name not in set(ids)]
    card = None if inputs.card is None else vars(inputs.card).copy()
    return run_manifest(
        kind=KIND,
        model=inputs.identity.model,
        scorer=config.scorer or before.get("scorer"),
        card=card or before.get("card"),
        revision=inputs.identity.revision,
        prompt_date=prompt_date,
        device=device_name(),
        replicas=before.get("replicas"),
        settings=before.get("settings", {}) | inputs.settings(),
        budget=vars(budget).copy(),
        questions={"file": config.questions, "skipped_lines": len(inputs.question_set.skipped)},
        question_ids=ids + kept,
        repeats=max(config.repeats, before.get("repeats", 1)),
    )


def device_name() -> str:
    """Return what the engine runs on, in words."""
    try:
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return str(current_platform.get_device_name())
    except ImportError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores ({platform.machine()})"
