"""The recipes: what stands there is what the commands run with."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_harness import run_command
from places import ROOT

from data_gen import commands
from data_gen.questions.benchmarks import BENCHMARKS
from step_eval import command as eval_command
from step_eval.config import EvalConfig
from step_eval.methods.registry import METHODS
from step_infer.cli.options import parse_config
from step_infer.client.prompt import SYSTEM_PROMPT
from step_infer.errors import InputError

RECIPES = ROOT / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


@pytest.mark.parametrize("command", [commands.main, eval_command.main])
@pytest.mark.parametrize("name", NAMES)
def test_a_command_takes_all_that_a_recipe_says(name: str, command: Callable[[], None]) -> None:
    options = ["--config", str(RECIPES / f"{name}.yaml"), "--questions", "q.jsonl", "--out", "out"]
    result = run_command(command, *options, "--print-config")
    assert result.returncode == 0, result.stderr
    found = yaml.safe_load(result.stdout)
    assert found | recipe(name) == found
    assert found["system"] == SYSTEM_PROMPT


@pytest.mark.parametrize("benchmark", ["aime_2025", "hmmt_feb_2025", "gpqa_diamond"])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_prints_runs_all_methods_on_a_benchmark(
    name: str, benchmark: str, tmp_path: Path
) -> None:
    names = ",".join(METHODS)
    options = ["--config", str(RECIPES / f"{name}.yaml"), "--questions", "questions.jsonl"]
    options += ["--benchmark", benchmark, "--out", "out", "--scorer", "scorer.safetensors"]
    result = run_command(eval_command.main, *options, "--methods", names, "--print-config")
    assert result.returncode == 0, result.stderr
    # Printing checks no values: what was printed is read again, as a run would read it.
    printed = tmp_path / "printed.yaml"
    printed.write_text(result.stdout)
    config = parse_config(EvalConfig, ["--config", str(printed)], "step-eval", "Compare.")
    assert config.method_names == list(METHODS)
    assert config.benchmark == benchmark
    assert (config.model, config.num_traces) == (recipe(name)["model"], recipe(name)["num_traces"])
    with pytest.raises(InputError, match="--scorer FILE for the method step"):
        parse_config(
            EvalConfig, ["--config", str(printed), "--scorer", "null"], "step-eval", "Compare."
        )


def test_the_documented_loop_over_recipes_and_benchmarks_is_what_step_eval_reads(
    tmp_path: Path,
) -> None:
    page = (RECIPES.parent / "docs" / "guides" / "evaluation.md").read_text()
    (loop,) = [block for block in page.split("```sh\n") if block.startswith("for recipe in")]
    # The shell takes the loop apart; a function in step-eval's place writes down each command.
    script = 'step-eval() { printf "%s\\n" "$@" >>"$COMMANDS"; echo >>"$COMMANDS"; }\n'
    commands_file = tmp_path / "commands"
    subprocess.run(
        ["bash", "-euc", script + loop.partition("```")[0]],
        check=True,
        cwd=RECIPES.parent,
        env={**os.environ, "COMMANDS": str(commands_file)},
    )
    found = set()
    for command in commands_file.read_text().removesuffix("\n\n").split("\n\n"):
        config = parse_config(EvalConfig, command.splitlines(), "step-eval", "Compare.")
        assert config.questions in BENCHMARKS
        assert BENCHMARKS[config.questions].source is not None
        assert config.method_names[:2] == ["sc", "step"]
        found.add((config.model, config.questions, config.out))
    of_the_paper = [n for n in NAMES if "paper's" in (RECIPES / f"{n}.yaml").read_text()]
    models = {recipe(name)["model"] for name in of_the_paper}
    assert len(models) == 3
    assert {model for model, *_ in found} == models
    assert len(found) == len({out for *_, out in found}) == len(models) * 3
