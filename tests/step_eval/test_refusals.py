"""What step-eval refuses, in whole: what it expected, what it found, and what to do."""

from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_harness import run_command
from places import ROOT, SCORER
from refusals import refusal

from data_gen.traces.features import write_shard
from step_eval.budget import mean_response_tokens
from step_eval.calibration.config import CalibrateConfig
from step_eval.calibration.run import calibrate
from step_eval.command import main
from step_eval.config import EvalConfig
from step_eval.device_lock import device_lock
from step_eval.manifest import earlier_manifest
from step_eval.merge import _check_same, _paired, merge
from step_eval.methods.deepconf import DeepConf
from step_eval.methods.slim_sc import SlimSC
from step_eval.methods.victim_scheduler import RankedOptions
from step_eval.recorded.files import read_pool, read_table, sc_records, write_table
from step_eval.recorded.traces import PoolQuestion, PoolTrace, TracePool
from step_eval.records import QuestionRecord, RecordStore
from step_eval.replay.config import ReplayConfig
from step_eval.replay.run import prepare, read_traces
from step_eval.replay.scheduler import ReplayOptions
from step_eval.replay.shapes import read_shape, write_model, write_scorer
from step_eval.replay.signals import RecordedSteps
from step_eval.report.events import write_event_report
from step_eval.results import KIND, read_run
from step_eval.simulation.config import SimulateConfig
from step_eval.simulation.drawn import DrawnTraces
from step_eval.simulation.run import simulate_all
from step_eval.simulation.schedule import EngineShape, SimulatedTrace, check_fit
from step_eval.simulation.scores import tuned_scores
from step_eval.simulation.timing import read_timing
from step_eval.watch import WatchConfig
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.network import load_scorer, save_scorer
from step_infer.storage.run_directory import RunDirectory, run_manifest, write_manifest

RECORDED = str(ROOT / "benchmarks" / "recorded" / "ledger.parquet")
METHODS = (
    "sc, step, deepconf-low, deepconf-high, slim-sc, branch, branch-random, single, random, "
    "youngest, longest, least-confident, oracle, all"
)
RULES = (
    "uniform, score, score^POWER, score-top-K, score-shared, best, confidence, lowest-confidence"
)

evaluation = partial(
    EvalConfig, model="model", questions="questions.jsonl", out="out", methods="sc"
)
watching = partial(WatchConfig, model="model", scorer="scorer", question="2+2?")
replay = partial(ReplayConfig, traces=RECORDED, out="out")
simulation = partial(SimulateConfig, out="out")
calibration = partial(CalibrateConfig, traces=RECORDED, scorer=str(SCORER), out="out")


def at_least(least, *names, prefix="--"):
    """Return a row for each whole number that is too small."""
    return [
        (
            {name: least - 1},
            f"{prefix}{name.replace('_', '-')} of at least {least}, found {least - 1}.",
        )
        for name in names
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *at_least(1, "num_traces", "repeats", "kv_budget_tokens", "replicas"),
        *at_least(1, "min_keep", "min_steps", "warmup", "window"),
        *at_least(0, "kv_series_questions"),
        (
            {"kv_budget": 1.5},
            "--kv-budget in (0, 1], a part of what all traces need, found 1.5. "
            "Hint: --kv-budget-tokens takes tokens.",
        ),
        (
            {"vote": "confidence"},
            "--confidence true beside --vote confidence, found false: the engine would not record "
            "it. Hint: add it, or choose another --vote.",
        ),
        (
            {"oracle_from": "run"},
            "the method oracle beside --oracle-from, found none. "
            "Hint: add oracle to --methods, or leave --oracle-from out.",
        ),
        (
            {"methods": "sc,deepconf-low", "scorer": "x", "num_traces": 16},
            "--warmup below --num-traces (16) for the method deepconf-low, found 16. "
            "Hint: lower --warmup or raise --num-traces.",
        ),
        (
            {"methods": "sc,step"},
            "--scorer FILE for the method step, found none. Hint: make one with scorer-export.",
        ),
        (
            {"allow_mismatch": ["x"]},
            "--scorer beside --allow-mismatch, found none. "
            "Hint: leave --allow-mismatch out, or add --scorer FILE.",
        ),
        (
            {"shard": "0/2", "kv_budget": 0.4},
            "--lengths-from or --kv-budget-tokens beside --shard, so that all shards have the same "
            "KV budget, found neither. Hint: give every shard the same one.",
        ),
        ({"aggregator": "median"}, "--aggregator out of mean, last, min, ema, found 'median'."),
        ({"vote": "loud"}, f"a vote out of {RULES}, found 'loud'."),
        ({"methods": " , "}, f"--methods out of {METHODS}, found none."),
        *(
            (
                {"methods": f"sc,{name}"},
                f"--methods out of {METHODS}, found '{name}'. Hint: +decided or +likely may follow "
                "a name, and +waveK one of them.",
            )
            for name in ("stop", "step+wave4", "step+decided+likely")
        ),
        ({"methods": "sc,sc"}, "each method once in --methods, found 'sc,sc'."),
    ],
)
def test_settings_of_an_evaluation(changes, text):
    assert refusal(lambda: evaluation(**changes)) == f"Expected {text}"


@pytest.mark.parametrize(("changes", "text"), at_least(1, "num_traces", "kv_budget_tokens"))
def test_settings_of_a_watched_question(changes, text):
    assert refusal(lambda: watching(**changes)) == f"Expected {text}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *at_least(1, "num_traces", "repeats", "limit", "min_keep", "min_steps", "kv_budget_tokens"),
        (
            {"kv_budget": 0},
            "--kv-budget in (0, 1], a part of what all traces need, found 0. "
            "Hint: --kv-budget-tokens takes tokens.",
        ),
        ({"length_scale": -1}, "--length-scale above 0, found -1."),
        ({"mean_tokens": -2}, "--mean-tokens above 0, found -2."),
        (
            {"mean_tokens": 9, "length_scale": 2},
            "either --length-scale or --mean-tokens, found both.",
        ),
        ({"aggregator": "median"}, "--aggregator out of mean, last, min, ema, found 'median'."),
        (
            {"methods": "sc,slim-sc"},
            "methods that recorded traces can be replayed under, found 'slim-sc': it looks at the "
            "text of traces, and a replay has none. Hint: leave it out of --methods.",
        ),
        (
            {"methods": "sc,branch"},
            "methods that recorded traces can be replayed under, found 'branch': its children go "
            "on from a parent's tokens, which no recorded trace did. Hint: leave it out of "
            "--methods.",
        ),
    ],
)
def test_settings_of_a_replay(changes, text):
    assert refusal(lambda: replay(**changes)) == f"Expected {text}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *at_least(1, "repeats", "limit", "min_keep", "min_steps", "block_size", "jobs"),
        ({"num_traces": [8, 0]}, "--num-traces in [1, 100000], found 0."),
        ({"kv_budget": [0.5, 9]}, "--kv-budget in [0.01, 4], found 9."),
        ({"length_scale": []}, "--length-scale in [0.001, 1000], found none."),
        ({"auroc": [0.4]}, "--auroc in [0.5, 0.99], found 0.4."),
        ({"aggregator": "median"}, "--aggregator out of mean, last, min, ema, found 'median'."),
        (
            {"methods": "sc,best"},
            "--methods out of sc, sc-score, step, random, youngest, longest, least-confident, "
            "oracle, found 'best'. Hint: +decided or +likely may follow a name.",
        ),
        (
            {"methods": "sc,branch-random"},
            "methods that recorded traces can tell of, found 'branch-random': its children go on "
            "from a parent's tokens, which no recorded trace did. Hint: compare it with step-eval, "
            "on an engine.",
        ),
        ({"likely_threshold": 1.5}, "a threshold in (0, 1], found 1.5."),
        (
            {"vote": "confidence"},
            "a --vote that goes by scores or is uniform, found 'confidence': nothing else is "
            "simulated.",
        ),
        (
            {"scorer": "x"},
            "--traces beside --scorer, found none. "
            "Hint: --traces takes a directory of step-collect with features.",
        ),
        (
            {"check": "x"},
            "--traces beside --check, found none. "
            "Hint: give those of the run, or leave --check out.",
        ),
    ],
)
def test_settings_of_a_simulation(changes, text):
    assert refusal(lambda: simulation(**changes)) == f"Expected {text}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *at_least(1, "num_traces", "repeats", "limit", "min_keep", "min_steps", "jobs"),
        ({"most_changed": 0}, "--most-changed in (0, 1), found 0."),
        ({"kv_budget": 9}, "--kv-budget in [0.01, 4], found 9."),
        ({"aggregator": "median"}, "--aggregator out of mean, last, min, ema, found 'median'."),
    ],
)
def test_settings_of_a_calibration(changes, text):
    assert refusal(lambda: calibration(**changes)) == f"Expected {text}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {},
            f"at least 99 questions for --most-changed 0.01, found 8 in {RECORDED}. Hint: collect "
            "traces of more questions, or give --most-changed 0.1112 or more.",
        ),
        (
            {"most_changed": 0.2, "num_traces": 65},
            f"at least 65 traces of each question in {RECORDED}, found 64 of "
            "ledger-test-11-00000. Hint: lower --num-traces.",
        ),
        (
            {"out": RECORDED},
            f"an output file apart from what is read, found {RECORDED}, which is the input "
            f"{RECORDED}. Hint: choose another --out.",
        ),
    ],
)
def test_what_a_calibration_takes(changes, text):
    assert refusal(lambda: calibrate(calibration(**changes))) == f"Expected {text}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *at_least(1, "prompt_tokens", "max_tokens", prefix="--drawn."),
        *(
            ({name: -0.5}, f"--drawn.{name.replace('_', '-')} {bound}, found -0.5.")
            for bound, names in {
                "in (0, 1)": ["right_share"],
                "above 0": ["right_tokens", "wrong_tokens", "step_tokens"],
            }.items()
            for name in names
        ),
    ],
)
def test_settings_of_a_made_up_world(changes, text):
    assert refusal(lambda: DrawnTraces(**changes)) == f"Expected {text}"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DeepConf(percentile=101), "a percentile in [0, 100], found 101."),
        (lambda: DeepConf(warmup=0), "warmup of at least 1, found 0."),
        (lambda: DeepConf(window=-3), "window of at least 1, found -3."),
        (lambda: SlimSC(threshold=2), "--slim.threshold in (0, 1], found 2."),
        (lambda: SlimSC(choice="x"), "--slim.choice out of random, diversity, found 'x'."),
        (lambda: SlimSC(min_tokens=0), "--slim.min-tokens of at least 1, found 0."),
        (lambda: SlimSC(min_thoughts=0), "--slim.min-thoughts of at least 1, found 0."),
        (
            lambda: SlimSC(encoder="nowhere"),
            "the folder of an embedding model (with config.json), found 'nowhere'. "
            "Hint: without --slim.encoder, hashed n-grams are compared.",
        ),
    ],
)
def test_settings_of_a_method(make, text):
    assert refusal(make) == f"Expected {text}"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (
            ["compare"],
            "options, or a subcommand out of run, events, merge, report, simulate, calibrate, "
            "replay, record, watch, found 'compare'. Hint: see step-eval --help.",
        ),
        (["events"], "an event log, found none. Hint: step-eval events FILE."),
        (
            ["merge", "--out", "out"],
            "at least one directory of step-eval to merge, found none. "
            "Hint: step-eval merge DIR... --out DIR.",
        ),
        (
            ["record", "--traces", RECORDED, "--out", "out", "--aggregator", "median"],
            "--aggregator out of mean, last, min, ema, found 'median'.",
        ),
    ],
)
def test_arguments_of_the_command(argv, text):
    done = run_command(main, *argv)
    assert (done.returncode, done.stderr) == (2, f"error: Expected {text}\n")


def manifest(folder, kind="traces", **content):
    write_manifest(folder, run_manifest(kind=kind, **content))
    return folder


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def written(path, text):
    path.write_text(text)
    return path


def lengths_folder(folder):
    parquet(folder / "traces" / "part-0.parquet", token_ids=pa.array([[]], pa.list_(pa.int32())))
    return folder


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            lambda tmp: tmp / "none",
            "earlier traces at TMP/none, found no file or directory. "
            "Hint: --lengths-from takes a directory of step-collect or step-eval.",
        ),
        (
            lambda tmp: tmp,
            "results.json or traces/part-*.parquet in TMP, found neither. "
            "Hint: give a directory that step-collect or step-eval has made.",
        ),
        (
            lambda tmp: written(tmp / "results.json", '{"methods": {"step": {}}}'),
            "the results of step-eval with the method sc in TMP/results.json, found none. "
            "Hint: choose a run with sc among its --methods.",
        ),
        (
            lambda tmp: parquet(tmp / "x.parquet", tokens=[1]),
            "a Parquet file with a list column token_ids at TMP/x.parquet, found: No match for "
            "FieldRef.Name(token_ids) in tokens: int64. Hint: choose another --lengths-from.",
        ),
        (
            lengths_folder,
            "traces with tokens in TMP/traces, found none. Hint: choose another --lengths-from.",
        ),
    ],
)
def test_where_lengths_come_from(source, text, tmp_path):
    assert refusal(lambda tmp: mean_response_tokens(source(tmp)), tmp_path) == f"Expected {text}"


def test_a_rank_and_recorded_signals_of_a_request():
    ranked = {"step": {"rank": float("inf")}}
    assert refusal(lambda: RankedOptions.from_extra_args(ranked)) == (
        "Expected step option rank to be a finite number, found inf."
    )
    assert refusal(lambda: ReplayOptions.from_extra_args({"step": '{"replay": {}}'})) == (
        "Expected step option replay in offline requests only, found a text. "
        "Hint: give extra_args a dictionary, not JSON."
    )


def pool(**changes):
    fields = {"tokens": 20, "positions": (4, 9), "scores": (0.5, 0.6), **changes}
    trace = PoolTrace(answer="2", right=True, **fields)
    return TracePool((PoolQuestion("q", 3, (trace,), "2"),), "a test")


def table(folder, truth="2", **changes):
    [question] = pool(**changes).questions
    write_table(folder / "table.parquet", TracePool((replace(question, truth=truth),), "a test"))
    return folder / "table.parquet"


def collected(folder, features=None):
    """Make a directory as step-collect's, of a part with one trace of three steps."""
    trace = {
        "question_id": "q",
        "trace_id": 0,
        "prompt_token_ids": [1],
        "token_ids": [1, 2, 3],
        "finish_reason": "stop",
        "extracted_answer": "2",
        "is_correct": True,
        "answer_group": 0,
        "boundary_positions": [0, 1, 2],
        "step_scores": None,
        "step_confidences": None,
        "mean_token_confidence": None,
        "ground_truth": "2",
        "row_start": 0,
        "num_steps": 3,
    }
    parquet(folder / "part.parquet", **{name: [value] for name, value in trace.items()})

    def listed(file, rows):
        size = (folder / file).stat().st_size if (folder / file).exists() else 0
        return {"file": file, "rows": rows, "bytes": size, "sha256": ""}

    states = None if features is None else listed(features, 3)
    return manifest(folder, parts=[{"traces": listed("part.parquet", 1), "features": states}])


def unsure(folder):
    """Make traces without confidences, and the path of a scorer that takes them."""
    scorer, card = load_scorer(SCORER)
    card = replace(card, confidence={"weight": 0.4, "mean": 12.0})
    save_scorer(folder / "scorer.safetensors", scorer, card)
    write_shard(folder / "shard.safetensors", [torch.zeros(3, card.hidden_size)], [[0, 1, 2]])
    return collected(folder, "shard.safetensors"), str(folder / "scorer.safetensors")


def narrow(folder):
    write_shard(folder / "shard.safetensors", [torch.zeros(3, 8)], [[0, 1, 2]])
    return collected(folder, "shard.safetensors")


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: read_table(written(tmp / "x", "no table")),
            "recorded traces of step-eval record or step-collect at TMP/x, found: Parquet magic "
            "bytes not found in footer. Either the file is corrupted or this is not a parquet "
            "file. Hint: choose other --traces.",
        ),
        (
            lambda tmp: (
                write_table(tmp / "x", TracePool((), "a test")),
                read_table(tmp / "x"),
            ),
            "recorded traces in TMP/x, found none. Hint: choose other --traces.",
        ),
        (
            lambda tmp: read_table(table(tmp, positions=(4, 22), tokens=23)),
            "step boundaries below the last of 23 tokens, and a beginning shared with an earlier "
            "trace, in TMP/table.parquet, found others in trace 0 of q. "
            "Hint: make it again with step-eval record.",
        ),
        (
            lambda tmp: read_pool(table(tmp), SCORER),
            "a directory of step-collect for --scorer, found the file TMP/table.parquet, which "
            "holds no hidden states. Hint: without --scorer, its own scores are used.",
        ),
        (
            lambda tmp: read_pool(manifest(tmp, "step-eval"), SCORER),
            "a directory of step-collect for --scorer, found TMP of step-eval, which keeps no "
            "hidden states. Hint: without --scorer, its own scores are used.",
        ),
        (
            lambda tmp: read_pool(manifest(tmp, parts=[])),
            "traces of step-collect or step-eval in TMP, found none. "
            "Hint: make them with step-collect.",
        ),
        (
            lambda tmp: (parquet(collected(tmp) / "part.parquet", x=[1]), read_pool(tmp)),
            "column 'question_id' in TMP/part.parquet, found none. "
            "Hint: make it again with this version of the toolkit.",
        ),
        (
            lambda tmp: read_pool(*unsure(tmp)),
            "token confidences beside TMP/shard.safetensors, which the scorer takes, found none. "
            "Hint: collect the traces with --confidence true.",
        ),
        (
            lambda tmp: read_pool(collected(tmp), SCORER),
            "features in TMP, found none. "
            "Hint: collect with --features true, or add them with step-train extract.",
        ),
        (
            lambda tmp: read_pool(collected(tmp, "none.safetensors"), SCORER),
            "a feature shard at TMP/none.safetensors, found: No such file or directory: "
            "TMP/none.safetensors. Hint: collect or extract again.",
        ),
        (
            lambda tmp: read_pool(narrow(tmp), SCORER),
            "states of width 256 (scorer) in TMP/shard.safetensors, found 8. "
            "Hint: choose a scorer of the model that made the traces.",
        ),
        (
            lambda tmp: sc_records({"step": []}, tmp),
            "records of the method sc in TMP, found none. "
            "Hint: choose a run with sc among its --methods.",
        ),
    ],
)
def test_recorded_traces(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == f"Expected {text}"


def replayed(path, **changes):
    return read_traces(replay(traces=str(path), **changes))


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: replayed(table(tmp, truth=None)),
            "a ground truth for every question in TMP/table.parquet, found none for q. "
            "Hint: collect traces of questions that have answers.",
        ),
        (
            lambda tmp: replayed(table(tmp, scores=())),
            "recorded step scores in TMP/table.parquet for the method step, found none. "
            "Hint: collect the traces with step-collect --scorer.",
        ),
        (
            lambda tmp: replayed(table(tmp), methods="sc,deepconf-low"),
            "recorded confidences in TMP/table.parquet for the method deepconf-low, found none. "
            "Hint: collect the traces with step-collect, which records them.",
        ),
        (
            lambda tmp: prepare(
                replay(traces=str(table(tmp)), engine={"max_model_len": 16}, shape="qwen3-4b")
            ),
            "traces of at most 16 tokens with their prompt, found 23. "
            "Hint: lower --length-scale or --mean-tokens.",
        ),
        (
            lambda tmp: read_shape("qwen3-99b"),
            "a shape out of phi-4-15b, qwen3-4b, qwen3-8b, or a config.json, found 'qwen3-99b'. "
            "Hint: --shape takes a model folder as well.",
        ),
        (
            lambda tmp: read_shape(written(tmp / "config.json", '{"hidden_size": "8"}')),
            "a model configuration with hidden_size in TMP/config.json, found none. "
            "Hint: give --shape the config.json of a language model.",
        ),
        (
            lambda tmp: (
                write_model(tmp / "model", read_shape("qwen3-4b")),
                write_scorer(
                    tmp / "scorer",
                    tmp / "model",
                    "qwen3-4b",
                    BoundaryRule("stride", frozenset(), None, None, 8),
                    like=SCORER,
                ),
            ),
            f"a scorer of states of width 2560 (qwen3-4b), found 256 in {SCORER}. "
            "Hint: leave --scorer out for one of random weights.",
        ),
        (
            lambda tmp: RecordedSteps([1, 2], [0.5], [0.1, 0.2, 0.3]),
            "as many scores and confidences as positions (2) in step option replay, found 1 and 3.",
        ),
        (
            lambda tmp: RecordedSteps([2, 1], [0.5, 0.5]),
            "ascending positions in step option replay, found others. "
            "Hint: sort them from 0 on, none of them twice.",
        ),
        (
            lambda tmp: RecordedSteps.from_option({"tokens": "x" * 100}),
            "step option replay with positions and scores, found {'tokens': '"
            + "x" * 48
            + " (RecordedSteps.__init__() got an unexpected keyword argument 'tokens').",
        ),
    ],
)
def test_what_a_replay_takes(refused, text, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert refusal(refused, tmp_path) == f"Expected {text}"


TWO = [SimulatedTrace("q", 10, 90), SimulatedTrace("q", 10, 1990)]


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (
            EngineShape(1000, 16, max_num_seqs=64, max_num_batched_tokens=32),
            "max_num_batched_tokens of at least max_num_seqs (64), found 32. "
            "Hint: raise --max-num-batched-tokens or lower --max-num-seqs.",
        ),
        (
            EngineShape(100, 16),
            "a KV cache that holds the longest trace (2,000 tokens), found 1,600 tokens. "
            "Hint: raise the KV budget.",
        ),
        (
            EngineShape(1000, 16, max_num_batched_tokens=1024, chunked_prefill=False),
            "max_num_batched_tokens of at least the longest trace (2,000 tokens) without chunked "
            "prefill, found 1,024. Hint: raise --max-num-batched-tokens.",
        ),
    ],
)
def test_a_shape_that_vllm_would_refuse(shape, text):
    assert refusal(lambda: check_fit(shape, TWO)) == f"Expected {text}"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            "1,2,3",
            "--timing as a directory of step-eval or as STEP,ROW,KV,PREFILL[,SCORING] in seconds, "
            "found '1,2,3'.",
        ),
        *(
            (costs, f"costs of at least 0, one of them above it, in --timing, found '{costs}'.")
            for costs in ("1,-2,0,0", "0,0,0,0")
        ),
    ],
)
def test_costs_of_a_step(given, text):
    assert refusal(lambda: read_timing(given)) == f"Expected {text}"


def test_victims_by_confidence_need_recorded_ones():
    settings = simulation(methods="sc,least-confident", limit=2)
    assert refusal(lambda: simulate_all(settings)) == (
        "Expected recorded traces with confidences (--traces) for the method least-confident, "
        "found none in 2 questions drawn from distributions: on average 50% of traces right, "
        "median 1,000 tokens (right) and 1,300 (wrong), a step every 60 tokens. "
        "Hint: leave the method out, or choose other --traces."
    )


def test_a_check_needs_step_scores(tmp_path):
    settings = simulation(traces=str(table(tmp_path, scores=())), check="x")
    assert refusal(lambda _: simulate_all(settings), tmp_path) == (
        "Expected step scores with --traces for --check, found none in recorded traces of "
        "TMP/table.parquet (a test). "
        "Hint: give --scorer, or collect with step-collect --scorer."
    )


def test_a_made_up_scorer_needs_an_early_step():
    late = replace(pool().questions[0].traces[0], right=False)
    [question] = pool().questions
    two = TracePool((replace(question, traces=(*question.traces, late)),), "a test")
    assert refusal(lambda: tuned_scores(two, 0.7, 0.1, "mean", seed=0)) == (
        "Expected a question with right and wrong traces that have a step boundary in their first "
        "10%, found none. Hint: take other traces, or leave out made-up scorers (--auroc '[]')."
    )


def settings_of(**settings):
    return {"settings": settings, "budget": {"tokens": 100}}


def line(folder, text):
    (folder / "records").mkdir()
    written(folder / "records" / "sc-r0.jsonl", text + "\n")
    return folder


def answered(folder):
    """Make a directory of step-eval with one record, and return its path as a text."""
    record = QuestionRecord("sc", 0, "q", "2", 3, 1.0, 0, 0.5, 1.0, 0.0, 100, [], [])
    RecordStore(folder).append(record)
    manifest(folder, KIND, question_ids=["q"], repeats=1, **settings_of(seed=0))
    return str(folder)


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: RecordStore(line(tmp, '{"schema_version": 0}')).read(),
            "TMP/records/sc-r0.jsonl:1: Expected record schema_version 1, found 0. "
            "Hint: run step-eval anew, in another --out.",
        ),
        (
            lambda tmp: RecordStore(line(tmp, '{"schema_version": 1}')).read(),
            "TMP/records/sc-r0.jsonl:1: Expected a question record, found: KeyError('answers'). "
            "Hint: remove the line, and give step-eval the same command again.",
        ),
        (
            lambda tmp: read_run(manifest(tmp)),
            "Expected a directory of step-eval, found TMP. Hint: name the --out of a run.",
        ),
        (
            lambda tmp: RecordStore(line(tmp, '{"n": ' + "1" * 5000 + "}")).read(),
            "TMP/records/sc-r0.jsonl:1: Expected a question record, found: ValueError('Exceeds the "
            "limit (4300 digits) for integer string conversion: value has 5000 digits; use "
            "sys.set_int_max_str_digits() to increase the limit'). "
            "Hint: remove the line, and give step-eval the same command again.",
        ),
        (
            lambda tmp: read_run(manifest(tmp, "step-eval", question_ids=[])),
            "Expected records in TMP, found none. Hint: run step-eval first.",
        ),
        (
            lambda tmp: merge([str(tmp)], str(tmp)),
            "Expected --out to be a new directory, found one of the runs, TMP. "
            "Hint: choose another --out.",
        ),
        (
            lambda tmp: merge([answered(tmp / "a"), answered(tmp / "b")], str(tmp / "out")),
            "Expected each question once for each method and repeat, found q (sc, repeat 0) in "
            "TMP/b and in a run before it. Hint: leave out one of the two.",
        ),
        (
            lambda tmp: merge([answered(tmp / "a")], answered(tmp / "b")),
            "Expected --out to be empty or an earlier join, found a run in TMP/b. "
            "Hint: choose another --out.",
        ),
        (
            lambda tmp: write_event_report([], str(tmp / "page.html")),
            "Expected an event log, found none. Hint: step-eval events FILE.",
        ),
        (
            lambda tmp: merge([answered(tmp / "a")], str(manifest(tmp))),
            "Expected an empty directory or one of an earlier run at TMP, found another command's, "
            "of kind 'traces'. Hint: choose another output directory.",
        ),
        (
            lambda tmp: earlier_manifest(
                RunDirectory(manifest(tmp, KIND, settings={"seed": 0}), KIND),
                {"seed": 1},
                begun=True,
            ),
            "Expected the settings of the run in TMP, found seed 1 where it has 0. "
            "Hint: choose another --out.",
        ),
        (
            lambda tmp: _check_same("a", settings_of(seed=0), "b", settings_of(seed=1)),
            "Expected runs with the same settings, found seed 0 in a and 1 in b. "
            "Hint: run one again with the settings of the other.",
        ),
        (
            lambda tmp: _paired({("sc", 0, "q1"): None, ("step", 0, "q2"): None}),
            "Expected a question that every method has answered beside --paired, found none "
            "(methods: sc, step). Hint: leave --paired out.",
        ),
        (
            lambda tmp: device_lock(tmp / "none" / "lock", alone=True).__enter__(),
            "Expected a writable lock file at TMP/none/lock, found: No such file or directory. "
            "Hint: choose another --device-lock.",
        ),
    ],
)
def test_files_of_a_run(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == text
