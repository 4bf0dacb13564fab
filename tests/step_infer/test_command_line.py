"""Command lines from configuration classes, exit statuses, and the engine's guard."""

import dataclasses
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from step_infer.cli.command import Terminated, run, sigterm_as_interrupt
from step_infer.cli.options import config_parser, parse_config, run_subcommand
from step_infer.client.engine import EngineGuard
from step_infer.client.trace import Sampling
from step_infer.errors import InputError


@dataclass(frozen=True)
class Config:
    """Settings of a test."""

    name: str
    """What it is called."""
    num_things: int = 3
    """How many."""
    loud: bool = False
    """Whether to shout."""
    quiet: bool = True
    """Whether to whisper."""
    sampling: Sampling = field(default_factory=Sampling)
    """How to sample."""
    engine: dict[str, Any] = field(default_factory=dict)
    """More."""
    names: list[str] = field(default_factory=list)
    """Several."""


def parse(*argv: str) -> Config:
    return parse_config(Config, argv, "try-it", "Try it.")


@pytest.mark.parametrize(
    ("argv", "changes"),
    [
        (["--num-things", "4"], {"num_things": 4}),
        (["--num_things=4"], {"num_things": 4}),
        (["--loud"], {"loud": True}),
        (["--loud", "--num-things", "4"], {"loud": True, "num_things": 4}),
        (["--quiet", "false"], {"quiet": False}),
        (["--sampling.top-k", "5"], {"sampling": Sampling(top_k=5)}),
        (["--engine.max_model_len", "9"], {"engine": {"max_model_len": 9}}),
        (["--engine.a", "x", "--engine.b", "0.5"], {"engine": {"a": "x", "b": 0.5}}),
        (["--engine", '{"a": 1}'], {"engine": {"a": 1}}),
        (["--names", "a"], {"names": ["a"]}),
        (["--names=a", "--names", "b"], {"names": ["a", "b"]}),
        (["--names", '["a", "b"]'], {"names": ["a", "b"]}),
        (["--names", "-1/2"], {"names": ["-1/2"]}),
        (["--num-things", "-4", "--loud"], {"num_things": -4, "loud": True}),
        (["--engine.a", '{"b": 1, "c": "x"}'], {"engine": {"a": {"b": 1, "c": "x"}}}),
    ],
)
def test_options_become_settings(argv: list[str], changes: dict[str, Any]) -> None:
    assert parse("--name", "n", *argv) == dataclasses.replace(Config("n"), **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xce\xff", "Expected YAML in UTF-8 as --config, found FILE: .*utf-8"),
        (b"{", "Expected YAML in UTF-8 as --config, found FILE: while parsing"),
        (b"[" * 9999, "Expected YAML in UTF-8 as --config, found FILE: .*recursion"),
        (b"[1]", "Expected a YAML file of options .* found a list in FILE"),
        (b"", "Expected a YAML file of options .* found nothing in FILE"),
        (b"# nothing\n", "Expected a YAML file of options .* found nothing in FILE"),
        (b"colour: red\n", "Expected options of try-it in --config FILE, found 'colour'"),
        (b"num-things: 3\n", "in --config FILE, found 'num-things'"),
        (b"sampling:\n  colour: red\n", "in --config FILE, found 'sampling.colour'"),
        (b"sampling.colour: red\n", "in --config FILE, found 'sampling.colour'"),
    ],
)
@pytest.mark.parametrize("separator", [" ", "="])
def test_a_configuration_that_cannot_be_used_is_named(
    content: bytes, message: str, separator: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message.replace("FILE", str(path))) as caught:
        parse("--name", "n", *f"--config{separator}{path}".split())
    assert len(str(caught.value).splitlines()) == 1
    assert "Hint: try-it --print-config shows" in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: --name. Hint: see try-it --help"),
        (["--name", "n", "--num-things", "many"], "^--num-things: .*many"),
        (["--name", "n", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["--name", "n", "--sampling.top-p", "2"], r"Expected top_p in \(0, 1\]"),
        (["--config", "/no/such.yaml"], "no/such"),
        (
            ["--name", "n", "--engine.a.b", "1", "--engine.a.c", "2"],
            r"--engine\.a with all .* found --engine\.a\.b.*'{\"b\": ...}'",
        ),
    ],
)
def test_bad_options_are_input_errors_of_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)


def test_the_help_writes_options_as_the_documents_do() -> None:
    text = config_parser(Config, "try-it", "Try it.").format_help()
    assert "--num-things NUM_THINGS" in text
    assert "--sampling.top-p TOP_P" in text
    assert not re.search(r"--[a-z.]*_|<class", text)


@dataclass(frozen=True)
class Arranged(Config):
    """Settings of a test, the most used ones named."""

    MAIN_OPTIONS: ClassVar = ("num_things", "name", "sampling.top_p")


def test_the_help_shows_main_options_first_and_all_others_as_advanced() -> None:
    text = config_parser(Arranged, "try-it", "Try it.").format_help()
    assert text.startswith("usage: try-it --name NAME [options]\n")
    first, advanced = (
        re.findall(r"^  (?:-h, )?--([\w.-]+)", part, re.MULTILINE)
        for part in text.split("\nadvanced:\n")
    )
    assert first == ["num-things", "name", "sampling.top-p", "config", "print-config", "help"]
    others = ["loud", "quiet", "sampling.temperature", "sampling.top-k", "sampling.max-tokens"]
    assert advanced == [*others, "engine", "names"]


@dataclass(frozen=True)
class Merge:
    """Settings with values that need no name."""

    POSITIONAL: ClassVar = "runs"

    out: str
    """What to make."""
    runs: list[str] = field(default_factory=list)
    """What it is made from."""
    paired: bool = False
    """Whether to leave out what is missing in one."""


@pytest.mark.parametrize(
    "argv",
    [
        ["a", "b", "--out", "o"],
        ["--out", "o", "a", "b"],
        ["--paired", "--out=o", "a", "b"],
        ["a", "b", "--out=o", "--paired", "false"],
        ["--runs", "a", "--runs", "b", "--out", "o"],
    ],
)
def test_values_without_a_name_stand_before_or_behind_the_options(argv: list[str]) -> None:
    found = parse_config(Merge, argv, "try-it", "Try it.")
    assert found == Merge("o", ["a", "b"], paired=argv[0] == "--paired")


def test_a_positional_option_of_one_value_takes_all_words_as_one() -> None:
    @dataclass(frozen=True)
    class Report:
        POSITIONAL: ClassVar = "run"

        run: Path

    assert parse_config(Report, ["a", "b"], "try-it", "Try it.") == Report(Path("a b"))


def test_an_option_or_nothing_runs_the_default_and_a_name_its_subcommand() -> None:
    called: list[tuple[str, list[str]]] = []
    commands = {"merge": lambda argv: called.append(("merge", list(argv)))}
    for argv in ([], ["--out", "o"], ["merge", "a"]):
        run_subcommand("try-it", commands, lambda argv: called.append(("", list(argv))), argv)
    assert called == [("", []), ("", ["--out", "o"]), ("merge", ["a"])]
    with pytest.raises(InputError, match="a subcommand out of merge, found 'split'"):
        run_subcommand("try-it", commands, lambda argv: None, ["split"])


def test_a_file_gives_settings_and_options_go_before_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: n\nnum_things: 5\nsampling:\n  top_k: 7\n")
    assert parse("--config", str(path), "--num-things", "6") == Config(
        "n", 6, sampling=Sampling(top_k=7)
    )
    path.write_text("name: n\nsampling.top_k: 7\nengine:\n  anything: 1\n")
    expected = Config("n", sampling=Sampling(top_k=7), engine={"anything": 1})
    assert parse("--config", str(path)) == expected


def fail(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status", "printed"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (fail(InputError("Expected a,\n found b.")), 2, "error: Expected a, found b.\n"),
        (fail(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_exit_statuses(
    main: Callable[[], int | None], status: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == status
    assert capsys.readouterr().err == printed


def test_a_refusal_is_one_line_and_shows_what_was_found_as_it_is() -> None:
    refusal = InputError("Expected a,\n\n   found 'b  c':\r\n\td. ")
    assert str(refusal) == "Expected a, found 'b  c': d."
    assert str(pickle.loads(pickle.dumps(refusal))) == str(refusal)  # from an engine's process


def test_a_block_with_something_to_keep_keeps_it_when_it_is_terminated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = []

    def main() -> None:
        with sigterm_as_interrupt():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # `timeout` sends it twice
                time.sleep(0.01)
                done.append("written")

    def not_reached(number: int, frame: object) -> None:
        raise AssertionError("SIGTERM would have ended the process at once")

    before = signal.signal(signal.SIGTERM, not_reached)
    try:
        with pytest.raises(SystemExit) as caught:
            run(main)
        assert signal.getsignal(signal.SIGTERM) == not_reached
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "terminated\n"
    assert done == ["written"]


def test_an_interrupt_that_came_of_a_sigterm_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with sigterm_as_interrupt():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            except KeyboardInterrupt:
                raise KeyboardInterrupt from None  # as a wait in a library may do

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert (caught.value.code, capsys.readouterr().err) == (143, "terminated\n")


def test_a_second_sigterm_interrupts_no_block_around_the_first_ones() -> None:
    before, done = signal.getsignal(signal.SIGTERM), []

    def terminate(what: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        done.append(what)

    def sample() -> None:
        with sigterm_as_interrupt():
            try:
                terminate("sampled")
            finally:
                terminate("written")

    def collect() -> None:
        with sigterm_as_interrupt():
            try:
                sample()
            finally:
                terminate("closed")

    with pytest.raises(Terminated):
        collect()
    assert done == ["written", "closed"]
    assert signal.getsignal(signal.SIGTERM) == before


def wait_long(started: Any) -> None:
    started.set()
    time.sleep(600)


def test_a_fork_of_such_a_block_ends_at_once_by_sigterm() -> None:
    ends = []

    def main() -> None:
        context = multiprocessing.get_context("fork")
        started = context.Event()
        child = context.Process(target=wait_long, args=(started,))
        with sigterm_as_interrupt():
            child.start()
            started.wait()
        child.terminate()
        child.join()
        ends.append(child.exitcode)

    with pytest.raises(SystemExit):
        run(main)
    assert ends == [-signal.SIGTERM]


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


GUARDED = """
import subprocess, sys, time
from step_infer.client.engine import EngineGuard
child = subprocess.Popen([sys.executable, "-c", CHILD])
guard = EngineGuard([child.pid])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("deaf", [False, True])
def test_an_engine_ends_with_its_killed_owner(deaf: bool) -> None:
    ignore = "import signal; signal.signal(15, signal.SIG_IGN); " if deaf else ""
    code = GUARDED.replace("CHILD", repr(f"{ignore}import time; time.sleep(600)"))
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = Path(f"/proc/{owner.stdout.readline().strip()}")
    assert child.exists()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 120
    while child.exists() and ") Z " not in (child / "stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_closed_guard_leaves_processes_alone() -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    child.start()
    assert child.pid is not None
    guard = EngineGuard([child.pid])
    assert guard._process is not None
    ended = guard._process
    guard.close()
    guard.close()
    assert ended.returncode is not None, "who could still end the child"
    assert child.is_alive()
    child.kill()
    child.join()
    EngineGuard([]).close()
