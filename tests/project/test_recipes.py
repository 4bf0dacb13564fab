"""The recipes: the paper's settings, as the commands read them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

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
PAPER = {
    "qwen3-4b-thinking-2507": ("Qwen/Qwen3-4B-Thinking-2507", 0.6, 20, 65536),
    "deepseek-r1-0528-qwen3-8b": ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", 0.6, 20, 65536),
    "phi-4-reasoning-plus": ("microsoft/Phi-4-reasoning-plus", 0.8, 50, 32768),
}
"""Model, temperature, top-k and longest response (arXiv 2601.09093, section 4.1)."""


def test_there_is_a_recipe_for_each_model_of_the_paper() -> None:
    assert {path.stem for path in RECIPES.iterdir()} == set(PAPER)


@pytest.mark.parametrize("command", [commands.main, eval_command.main])
@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_gives_the_papers_settings(name: str, command: Callable[[], None]) -> None:
    model, temperature, top_k, max_tokens = PAPER[name]
    options = ["--config", str(RECIPES / f"{name}.yaml"), "--questions", "q.jsonl", "--out", "out"]
    result = run_command(command, *options, "--print-config")
    assert result.returncode == 0, result.stderr
    found = yaml.safe_load(result.stdout)
    assert found["model"] == model
    assert found["num_traces"] == 64
    assert found["system"] == SYSTEM_PROMPT
    assert found["sampling"] == {
        "temperature": temperature,
        "top_p": 0.95,
        "top_k": top_k,
        "max_tokens": max_tokens,
    }
    assert found["engine"] == {"gpu_memory_utilization": 0.9}


@pytest.mark.parametrize("benchmark", ["aime_2025", "hmmt_feb_2025", "gpqa_diamond"])
@pytest.mark.parametrize("name", PAPER)
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
    assert (config.model, config.num_traces) == (PAPER[name][0], 64)
    with pytest.raises(InputError, match="--scorer FILE for the method step"):
        parse_config(
            EvalConfig, ["--config", str(printed), "--scorer", "null"], "step-eval", "Compare."
        )


def test_the_documented_loop_over_recipes_and_benchmarks_is_what_step_eval_reads(
    tmp_path: Path,
) -> None:
    page = (RECIPES.parent / "docs" / "evaluation.md").read_text()
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
    models = {model for model, *_ in PAPER.values()}
    assert {model for model, *_ in found} == models
    assert len(found) == len({out for *_, out in found}) == len(models) * 3
