"""Settings of a sweep over training variants, and the variants themselves."""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_infer.cli.options import config_parser, option_name
from step_infer.errors import InputError
from step_train.fit.config import FitConfig

Changes = dict[str, Any]

PAPER, COMBINED = "paper", "combined"
"""Names of the reference, and of the changes that helped taken together."""

VARIANTS: dict[str, Changes] = {
    PAPER: {},
    "large batches": {"batch_size": 1024, "learning_rate": 1e-3},
    "trace weighting": {"trace_weighting": "trace"},
    "early discount": {"early_discount": 0.7},
    "label smoothing": {"label_smoothing": 0.1},
    "ranking loss": {"ranking_weight": 1.0},
    "normalised input": {"normalise": "standard"},
    "components": {"components": 64},
    "linear": {"depth": 0},
    "two layers": {"depth": 2},
    "narrow": {"width": 128},
    "dropout": {"dropout": 0.3},
    "strong decay": {"weight_decay": 1e-3},
    "within-question choice": {"select": "within_question"},
}
"""The built-in variants: the paper's recipe, and one change at a time."""

_TEST_SEED = 0
"""Of the choice of the test questions, which all fits share."""

_OWN = (
    "out",
    "seed",
    "test_seed",
    "val_fraction",
    "test_fraction",
    "progress",
    "memory_mib",
    "accelerator",
)
_FIELDS = {field.name for field in dataclasses.fields(FitConfig)} - set(_OWN)


@dataclass(frozen=True)
class SweepConfig:
    """Everything that `step-train sweep` can be told."""

    traces: Path
    """Traces directory with features, of step-collect or step-train extract."""
    out: Path
    """Directory to make, or to go on with: finished fits are kept."""
    variants: Path | None = None
    """YAML file of variants: a name, and under it settings of step-train fit that differ from the
    variant "paper"; a variant may name other traces of the same questions (other steps). Null:
    the built-in ones."""
    seeds: int = 3
    """Fits of each variant: seeds 0, 1, …, each with its own training and validation questions,
    weights and order. All have the same test questions."""
    val_fraction: float = 0.2
    """Part of the questions by which the best epoch, the trace aggregator and, in a sweep, the best
    variant are chosen."""
    test_fraction: float = 0.2
    """Part of the questions for the final metrics; used for nothing else."""
    combine: bool = True
    """Try the changes that helped most on validation questions together as well."""
    jobs: int = 1
    """Fits at the same time, each a process with one thread and its own features in memory."""
    memory_mib: int = 1024
    """Most memory for blocks of features in a process, MiB; smaller features stay in memory."""
    accelerator: str = "auto"
    """Where to run: auto, cpu, gpu, …"""
    progress: bool = True
    """Show progress on standard error."""

    def __post_init__(self) -> None:
        for name, bound in {"seeds": 1, "jobs": 1, "memory_mib": 1}.items():
            if getattr(self, name) < bound:
                option = option_name(name)
                raise InputError(
                    f"Expected {option} of at least {bound}, found {getattr(self, name)}."
                )

    def fit(self, changes: Changes, seed: int, out: Path) -> FitConfig:
        """Return the settings of one fit.

        Raises:
            InputError: a changed setting is out of range.
        """
        values: dict[str, Any] = {"traces": self.traces, "accelerator": self.accelerator, **changes}
        values["traces"] = Path(values["traces"])
        return FitConfig(
            **values,
            out=out,
            seed=seed,
            test_seed=_TEST_SEED,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            memory_mib=self.memory_mib,
            progress=False,
        )


def read_variants(config: SweepConfig) -> dict[str, Changes]:
    """Return the variants by name, the paper's recipe first; its changes are in all others.

    Raises:
        InputError: the file cannot be read, or a variant has an unknown setting or a bad value.
    """
    variants = VARIANTS if config.variants is None else _read(config.variants)
    reference = variants.get(PAPER) or {}
    whole = {PAPER: reference}
    parser = config_parser(FitConfig, "step-train fit", "")
    for name, changes in variants.items():
        if name == COMBINED:
            raise InputError(
                f"Expected names of variants other than {COMBINED!r}, which is made, found it in "
                f"{config.variants}. Hint: rename it."
            )
        whole[name] = reference | (changes or {})
        unknown = sorted(whole[name].keys() - _FIELDS)
        if unknown:
            raise InputError(
                f"Expected settings out of {', '.join(sorted(_FIELDS))} in variant {name!r}, "
                f"found {unknown[0]!r}."
            )
        try:
            # As on the command line: types are checked, and 1e-4 is a number.
            parsed = parser.parse_object({"traces": "", "out": "", **whole[name]})
            whole[name] = {setting: _plain(parsed[setting]) for setting in whole[name]}
            config.fit(whole[name], 0, config.out)
        except (argparse.ArgumentError, InputError) as error:
            raise InputError(
                f"Expected good settings in variant {name!r}, found: {error}"
            ) from error
    return whole


def _plain(value: Any) -> Any:
    # The outcome goes into JSON with the settings.
    return str(value) if isinstance(value, Path) else value


def _read(path: Path) -> dict[str, Changes]:
    import yaml  # type: ignore[import-untyped]

    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"Expected a YAML file of variants at {path}, found: {error}. "
            "Hint: write lines such as 'deep: {depth: 2}'."
        ) from error
    good = isinstance(found, dict) and all(
        isinstance(name, str) and (changes is None or isinstance(changes, dict))
        for name, changes in found.items()
    )
    if not good or not found:
        raise InputError(
            f"Expected names of variants with settings under them in {path}, found "
            f"{found!r:.60}. Hint: write lines such as 'deep: {{depth: 2}}'."
        )
    return dict(found)


def combine(variants: dict[str, Changes], gains: dict[str, float], most: int = 3) -> Changes:
    """Return the changes with the greatest gains together; of two to one setting, the better.

    Args:
        variants: of `read_variants`.
        gains: of each variant on validation questions, against the paper's recipe.
        most: how many changes to take; only those with a gain above 0 are.

    Returns:
        The settings, or nothing where fewer than two changes helped.
    """
    reference = variants[PAPER]
    chosen: Changes = {}
    count = 0
    for name in sorted(gains, key=lambda name: -gains[name]):
        own = {k: v for k, v in variants[name].items() if reference.get(k) != v}
        if name != PAPER and gains[name] > 0 and count < most and not own.keys() & chosen.keys():
            chosen |= own
            count += 1
    return reference | chosen if count > 1 else {}
