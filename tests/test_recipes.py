"""The recipes: the paper's settings, as the commands read them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from step_infer.prompt import SYSTEM_PROMPT

RECIPES = Path(__file__).parent.parent / "recipes"
PAPER = {
    "qwen3-4b-thinking-2507": ("Qwen/Qwen3-4B-Thinking-2507", 0.6, 20, 65536),
    "deepseek-r1-0528-qwen3-8b": ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", 0.6, 20, 65536),
    "phi-4-reasoning-plus": ("microsoft/Phi-4-reasoning-plus", 0.8, 50, 32768),
}
"""Model, temperature, top-k and longest response (arXiv 2601.09093, section 4.1)."""


def test_there_is_a_recipe_for_each_model_of_the_paper() -> None:
    assert {path.stem for path in RECIPES.iterdir()} == set(PAPER)


@pytest.mark.parametrize("command", ["data_gen.commands", "step_infer.eval_command"])
@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_gives_the_papers_settings(name: str, command: str) -> None:
    model, temperature, top_k, max_tokens = PAPER[name]
    options = ["--config", str(RECIPES / f"{name}.yaml"), "--questions", "q.jsonl", "--out", "out"]
    result = subprocess.run(
        [sys.executable, "-m", command, *options, "--print-config"],
        capture_output=True,
        text=True,
        timeout=300,
    )
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
