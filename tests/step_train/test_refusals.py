"""What step-train and scorer-export refuse, in whole: what they expected, found, and what to do."""

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_harness import run_command
from places import CHECKPOINT
from refusals import refusal
from synthetic_traces import BOUNDARY, write_traces
from torch import nn

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.writer import TraceWriter
from step_infer.client.prompt import load_tokenizer
from step_infer.scorer.boundary import BoundaryOptions, BoundaryRule
from step_infer.scorer.card import ScorerCard
from step_infer.scorer.identity import identify
from step_infer.scorer.network import StepScorer, save_scorer
from step_infer.storage.run_directory import read_manifest, run_manifest, write_manifest
from step_train.commands import main
from step_train.data.feature_blocks import FeatureRows, TrainingBatches
from step_train.data.projection import Projection
from step_train.data.subspace import require_components
from step_train.data.trace_table import TraceTable, balance, read_traces, split_questions
from step_train.data.training_data import identity_of, read_training_data
from step_train.demo_model.config import LedgerLMConfig
from step_train.evaluate import _only, evaluate_scorer, score_steps
from step_train.evaluation.acceptance import ranks_above_chance
from step_train.evaluation.baselines_trained import question_baseline
from step_train.evaluation.config import EvaluateConfig
from step_train.evaluation.trace_facts import read_confidences, read_step_facts
from step_train.export.command import ExportConfig
from step_train.export.published import import_scorer, read_network
from step_train.export.run import export
from step_train.extract.batches import PartBatches
from step_train.extract.config import ExtractConfig
from step_train.extract.run import extract, load_model, require_all_parts
from step_train.fit.config import FitConfig
from step_train.fit.module import ScorerModule
from step_train.fit.sweep import _fit_all
from step_train.fit.sweep_compare import compare
from step_train.fit.sweep_config import SweepConfig, read_variants
from step_train.run_directory import FitDirectory, read_checkpoint
from step_train.trainer import make_trainer

fit = partial(FitConfig, Path("traces"), Path("out"))
OURS = identify(str(CHECKPOINT)).tokenizer_hash[:12]
sweep = partial(SweepConfig, Path("traces"), Path("out"))


def at_least(least, *names):
    """Return a row for each whole number that is too small."""
    return [
        (
            {name: least - 1},
            f"--{name.replace('_', '-')} of at least {least}, found {least - 1}.",
        )
        for name in names
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *at_least(1, "width", "batch_size", "max_epochs", "patience", "memory_mib", "devices"),
        *at_least(1, "shuffles", "num_nodes"),
        *at_least(0, "depth"),
        ({"depth": 65}, "--depth of at most 64, found 65."),
        ({"width": 2**20 + 1}, "--width of at most 1048576, found 1048577."),
        ({"seed": -1}, "--seed from 0 to 4294967295, found -1."),
        ({"test_seed": 2**32}, "--test-seed from 0 to 4294967295, found 4294967296."),
        ({"components": 3}, "--components of at least 8, or 0 for none, found 3."),
        ({"dropout": 1.0}, "--dropout from 0 to 0.99, found 1.0."),
        ({"label_smoothing": -0.1}, "--label-smoothing from 0 to 0.99, found -0.1."),
        ({"early_discount": 1.5}, "--early-discount from 0 to 1, found 1.5."),
        ({"ranking_weight": -1.0}, "--ranking-weight of at least 0, found -1.0."),
        (
            {"ranking_weight": 1.0, "devices": 2},
            "--devices 1 with --ranking-weight, found 2: pairs are made within a device's share "
            "of a batch. Hint: leave --devices out.",
        ),
        (
            {"ranking_weight": 1.0, "num_nodes": 2},
            "--num-nodes 1 with --ranking-weight, found 2: pairs are made within a device's share "
            "of a batch. Hint: leave --num-nodes out.",
        ),
        (
            {"learning_rate": 0.0, "weight_decay": 0.1},
            "--learning-rate above 0 and --weight-decay of at least 0, found 0.0 and 0.1.",
        ),
    ],
)
def test_settings_of_a_fit(changes, text):
    assert refusal(lambda: fit(**changes)) == f"Expected {text}"


@pytest.mark.parametrize(
    ("changes", "text"),
    at_least(1, "seeds", "jobs", "memory_mib"),
)
def test_settings_of_a_sweep(changes, text):
    assert refusal(lambda: sweep(**changes)) == f"Expected {text}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *at_least(1, "steps", "layers", "checkpoint_steps", "log_steps", "intermediate_size"),
        ({"hidden_size": 200}, "--hidden-size in multiples of 128, found 200."),
        (
            {"tokens_per_batch": 100},
            "--tokens-per-batch of at least 2048, found 100. Hint: a batch holds whole traces.",
        ),
    ],
)
def test_settings_of_the_demo_model(changes, text):
    assert refusal(lambda: LedgerLMConfig(out=Path("out"), **changes).check()) == f"Expected {text}"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EvaluateConfig(), "either --run or --scorer, found none of them."),
        (lambda: EvaluateConfig(run="r", scorer="s"), "either --run or --scorer, found both."),
        (
            lambda: EvaluateConfig(scorer="s"),
            "--traces with --scorer, found none. "
            "Hint: --traces takes a directory of step-collect with features.",
        ),
        (
            lambda: EvaluateConfig(scorer="s", traces="t", split="val"),
            "a run for --split val, found a scorer file, which knows no split. Hint: use --run.",
        ),
        (
            lambda: ExtractConfig("m", Path("t"), Path("o"), batch_tokens=0),
            "--batch-tokens of at least 1, found 0.",
        ),
        (
            lambda: ExtractConfig("m", Path("t"), Path("o"), devices=0),
            "--devices of at least 1, found 0.",
        ),
        (
            lambda: ExtractConfig("m", Path("t"), Path("o"), num_nodes=0),
            "--num-nodes of at least 1, found 0.",
        ),
        (
            lambda: ExportConfig(),
            "one of a checkpoint, --from-pt FILE and --inspect FILE, found 0 of them. "
            "Hint: scorer-export RUN --out scorer.safetensors.",
        ),
        (
            lambda: ExportConfig(Path("run")),
            "--out FILE with a checkpoint or --from-pt, and not with --inspect, found none. "
            "Hint: scorer-export RUN --out scorer.safetensors.",
        ),
        (
            lambda: ExportConfig(inspect=Path("file"), out=Path("other")),
            "--out FILE with a checkpoint or --from-pt, and not with --inspect, found other. "
            "Hint: scorer-export RUN --out scorer.safetensors.",
        ),
        (
            lambda: ExportConfig(from_pt=Path("file"), out=Path("out")),
            "--model with --from-pt and only there, found model None. "
            "Hint: a run of step-train fit knows its own, a published file does not.",
        ),
        (
            lambda: ExportConfig(Path("run"), out=Path("out"), aggregator="last"),
            "--aggregator with --from-pt only, found 'last' without. "
            "Hint: a run of step-train fit knows its own.",
        ),
        (
            lambda: ExportConfig(Path("run"), out=Path("out"), boundary=BoundaryOptions("newline")),
            "--boundary.kind with --from-pt only, found 'newline' without. "
            "Hint: a run of step-train fit knows its own.",
        ),
    ],
)
def test_settings_of_the_other_commands(make, text):
    assert refusal(make) == f"Expected {text}"


def test_a_subcommand_that_is_not_there():
    message = "a subcommand out of fit, sweep, evaluate, extract, demo-model, found 'train'."
    assert message in run_command(main, "train").stderr


def variants(folder, text):
    (folder / "variants.yaml").write_text(text)
    return read_variants(sweep(variants=folder / "variants.yaml"))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            "all-of-it: {depth: 2}\ncombined: {depth: 3}",
            "names of variants other than 'combined', which is made, found it in "
            "TMP/variants.yaml. Hint: rename it.",
        ),
        ("deep: {depht: 2}", None),
        (
            "deep: {depth: -1}",
            "good settings in variant 'deep', found: Expected --depth of at least 0, found -1.",
        ),
        (
            "- deep",
            "names of variants with settings under them in TMP/variants.yaml, found ['deep']. "
            "Hint: write lines such as 'deep: {depth: 2}'.",
        ),
        (
            "deep: {depth: 2",
            "a YAML file of variants at TMP/variants.yaml, found: while parsing a flow mapping in "
            '"<unicode string>", line 1, column 7: deep: {depth: 2 ^ '
            "expected ',' or '}', but got '<stream end>' in "
            '"<unicode string>", line 1, column 16: deep: {depth: 2 ^. '
            "Hint: write lines such as 'deep: {depth: 2}'.",
        ),
    ],
)
def test_variants_of_a_sweep(content, text, tmp_path):
    found = refusal(lambda tmp: variants(tmp, content), tmp_path)
    if text is None:
        assert found.startswith("Expected settings out of aggregator, baselines, ")
        assert found.endswith(" in variant 'deep', found 'depht'.")
    else:
        assert found == f"Expected {text}"


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    return write_traces(tmp_path_factory.mktemp("made") / "traces", "label", questions=4, traces=4)


def changed(folder, **fields):
    """Make a traces directory of one part whose manifest has other fields; None leaves one out."""
    directory = write_traces(folder, "label", questions=3, traces=2)
    manifest = read_manifest(folder) | fields
    write_manifest(folder, {k: v for k, v in manifest.items() if v is not None})
    return TraceDirectory(directory.path)


def loop(folder):
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def unlabelled(folder):
    """Make a traces directory of two traces without an answer."""
    changes = {0: {"extracted_answer": None}, 1: {"extracted_answer": None}}
    return write_traces(folder, "label", questions=1, traces=2, changes=changes)


def table_of(right):
    """Return a table of one trace with one step for each question."""
    count = np.arange(len(right))
    names = tuple(f"q{number}" for number in count)
    ones = np.ones_like(count)
    return TraceTable(names, count, np.array(right), 0 * count, count, ones)


def scores(val, test):
    """Return the outcome of a fit on one validation and one test question."""
    even = [0.5] * 3
    return {"val": {val: even}, "test": {test: even}, "epochs": 1, "aggregator": "mean"}


NONE = {"paper": {}, "deep": {}}


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda: split_questions(table_of([True, False, True]), 0.5, 0.5, 0),
            "--val-fraction and --test-fraction above 0 and below 1 together, found 0.5 and 0.5.",
        ),
        (
            lambda: split_questions(table_of([True, False]), 0.2, 0.2, 0),
            "traces of at least 3 questions, one a split, found 2. Hint: collect more questions.",
        ),
        (
            lambda: split_questions(table_of([False] * 3), 0.2, 0.2, 0),
            "right and wrong traces in the traces directory, found 0 right and 3 wrong. "
            "Hint: collect traces of more questions; if all are wrong, check that the sampling and "
            "--system are the model's own and the answers right.",
        ),
        (
            lambda: split_questions(table_of([True, False, True]), 0.2, 0.2, 0),
            "right and wrong traces in the train split, found 1 right and 0 wrong. "
            "Hint: collect more questions, give the split more of them (--val-fraction, "
            "--test-fraction), or choose another seed.",
        ),
        (
            lambda: balance(table_of([True, False]), 0, 0),
            "--max-traces-per-class of at least 1, found 0.",
        ),
        (
            lambda: compare({"paper": [{"val": {}, "test": {}}]}, {"paper": {}}),
            "val questions with right and wrong traces, found none. "
            "Hint: collect more questions, or more traces a question.",
        ),
        (
            lambda: compare({"paper": [scores("q1", "q2")], "deep": [scores("q2", "q1")]}, NONE),
            "the val questions of variant 'paper' in variant 'deep', found others. "
            "Hint: its traces must be of the same questions.",
        ),
        (
            lambda: _only(table_of([True, False]), ["other"], "test"),
            "traces of the run's test questions, found none with these ids. "
            "Hint: use --split all for other traces.",
        ),
        (
            lambda: ScorerModule._require_pairs(None, None),
            "validation questions with right and wrong traces for --select within_question, found "
            "none. Hint: collect more questions, or --select paper.",
        ),
        (
            lambda: _fit_all(sweep(), {"a b": {}, "a:b": {}}),
            "variants whose names differ as folders, found 'a:b' and 'a b'. "
            "Hint: rename one of them.",
        ),
        (
            lambda: ranks_above_chance({}, "mean", force=False),
            "a 95 % interval above 0.5 for within-question AUROC at half of the trace (test "
            "questions), found none (not the best checkpoint of a complete run, or no question can "
            "tell). Hint: train on more questions; --force writes the scorer all the same, and its "
            "card says that it has not earned its place.",
        ),
    ],
)
def test_what_cannot_be_told_apart(refused, text):
    assert refusal(refused) == f"Expected {text}"


WIDER = {"config_hash": "c" * 64, "tokenizer_hash": "t" * 64, "hidden_size": 32}


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: identity_of(changed(tmp, identity={"hidden_size": 16})),
            "identity with config_hash, tokenizer_hash and hidden_size in the manifest of TMP, "
            "found {'hidden_size': 16}. Hint: collect or extract again.",
        ),
        (
            lambda tmp: identity_of(changed(tmp, identity=None)),
            "identity in the manifest of TMP, found none. Hint: collect or extract again.",
        ),
        (
            lambda tmp: read_training_data(
                changed(tmp, identity=WIDER).path,
                val_fraction=0.3,
                test_fraction=0.3,
                max_traces_per_class=None,
                seed=0,
            ),
            "32 numbers a state (hidden_size in the manifest of TMP), found 16 in its features. "
            "Hint: make them anew with step-train extract.",
        ),
        (
            lambda tmp: read_traces(changed(tmp, parts=[])),
            "traces in TMP, found none. Hint: make them with step-collect.",
        ),
        (
            lambda tmp: read_traces(unlabelled(tmp)),
            "traces with boundaries, an answer and a label in TMP, found none (2 no answer). "
            "Hint: collect traces of questions that have answers, with room to come to their end "
            "(--sampling.max-tokens).",
        ),
        (
            lambda tmp: extract(ExtractConfig("m", changed(tmp, parts=[]).path, Path("out"))),
            "traces in TMP, found none. Hint: make them with step-collect.",
        ),
        (
            lambda tmp: extract(ExtractConfig("m", changed(tmp).path, tmp)),
            "another directory as --out than as --traces, found the same. "
            "Hint: choose another --out.",
        ),
        (
            lambda tmp: extract(
                ExtractConfig(str(CHECKPOINT), changed(tmp / "traces", identity={}).path, loop(tmp))
            ),
            "a writable output directory at TMP/loop, found: File exists. "
            "Hint: choose another path or change its permissions.",
        ),
        (
            lambda tmp: extract(
                ExtractConfig(str(CHECKPOINT), changed(tmp / "traces").path, tmp / "out")
            ),
            f"tokenizer_hash tttttttttttt… (manifest of TMP/traces), found {OURS}… (model "
            f"{CHECKPOINT}). Hint: extract with the model that made the traces.",
        ),
        (
            lambda tmp: make_trainer(accelerator="cpu", devices=1, num_nodes=2),
            "MASTER_ADDR, MASTER_PORT, NODE_RANK in the environment with --num-nodes 2, found no "
            "MASTER_ADDR. Hint: set them on each node, as docs/guides/scale_out.md shows.",
        ),
        (
            lambda tmp: require_all_parts(TraceWriter(tmp / "out", {}), changed(tmp / "traces")),
            "all 1 parts in TMP/out, found 0. Hint: --out must be a folder that all nodes see; "
            "give the same command again, and it goes on.",
        ),
        (
            lambda tmp: next(
                iter(
                    PartBatches(
                        changed(tmp),
                        [0],
                        BoundaryRule("stride", frozenset(), None, None, 3),
                        64,
                        30,
                    )
                )
            ),
            "token ids from 0 to 29 (model), found 30 in part 0 of TMP. "
            "Hint: extract with the model that made the traces.",
        ),
        (
            lambda tmp: evaluate_scorer(EvaluateConfig(run=tmp)),
            "a run directory of step-train fit at TMP, found none there. "
            "Hint: name the --out of step-train fit.",
        ),
        (
            lambda tmp: (
                write_manifest(tmp, run_manifest(kind="scorer training", complete=False)),
                evaluate_scorer(EvaluateConfig(run=tmp)),
            ),
            "a complete run in TMP, found one that has not come to its end. "
            "Hint: give step-train fit the same command again.",
        ),
        (
            lambda tmp: Projection(tmp, None, 8, 1, 0).open(),
            "the subspace in TMP/subspace.safetensors, found none. "
            "Hint: give step-train fit the same command again.",
        ),
    ],
)
def test_directories(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == f"Expected {text}"


def started(folder):
    with FitDirectory(folder) as run:
        run.start({"width": 64, "depth": 1}, {})
    return run


def saved(folder, content):
    torch.save(content, folder / "x.pt")
    return folder / "x.pt"


def written(folder, content):
    (folder / "x.pt").write_bytes(content)
    return folder / "x.pt"


def network(hidden_size=16, width=8, last=1):
    return nn.Sequential(nn.Linear(hidden_size, width), nn.ReLU(), nn.Linear(width, last))


def sized(width=512, depth=64):
    """Return a checkpoint without weights whose record says how large they are."""
    record = {"schema_version": 1, "width": width, "depth": depth, "boundary": {}}
    record |= {"model": {"model": "m", **dict.fromkeys(("config_hash", "tokenizer_hash"), "x")}}
    record["model"]["hidden_size"] = 16
    record |= {"settings": {}, "data": {}}
    return {"step_scorer": record, "epoch": 0, "state_dict": {}}


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: ((tmp / "notes").touch(), started(tmp)),
            "an empty directory or one of an earlier run at TMP, found notes and no "
            "manifest.json. Hint: choose another output directory.",
        ),
        (
            lambda tmp: (write_manifest(tmp, run_manifest(kind="traces")), started(tmp)),
            "an empty directory or one of an earlier run at TMP, found another command's, of kind "
            "'traces'. Hint: choose another output directory.",
        ),
        (
            lambda tmp: started(tmp).start({"width": 32, "depth": 1}, {}),
            "width 64 (the run started in TMP), found 32. "
            "Hint: use the same settings to go on, or another output directory.",
        ),
        (
            lambda tmp: started(tmp).split(),
            "lists of question ids under train, val, test in TMP/split.json, found {}. "
            "Hint: train again.",
        ),
        (
            lambda tmp: read_checkpoint(tmp / "none.ckpt"),
            "a checkpoint of step-train fit at TMP/none.ckpt, found none. Hint: check the path.",
        ),
        (
            lambda tmp: read_checkpoint(saved(tmp, {1: Path("x")})),
            "a checkpoint of step-train fit of tensors and plain data at TMP/x.pt, found something "
            "else or a damaged file (UnpicklingError). Hint: a file that needs more is not opened, "
            "as it could run code; save its state dict alone.",
        ),
        (
            lambda tmp: read_network(written(tmp, b"\x80\x02.")),  # the stack is empty
            "a PyTorch checkpoint of tensors and plain data at TMP/x.pt, found something else or a "
            "damaged file (IndexError). Hint: a file that needs more is not opened, as it could "
            "run code; save its state dict alone.",
        ),
        (
            lambda tmp: read_network(saved(tmp, {"0.weight": torch.eye(2).to_sparse()})),
            "only weights and biases of Linear(H, width), ReLU, Linear(width, 1) in TMP/x.pt, "
            "found '0.weight' (torch.sparse_coo, torch.float32). Hint: give a state dict, or a "
            "dict with 'model_state_dict'.",
        ),
        (
            lambda tmp: read_network(saved(tmp, {"0.weight": torch.ones(1).expand(2**40, 4)})),
            "only weights and biases of Linear(H, width), ReLU, Linear(width, 1) in TMP/x.pt, "
            "found '0.weight' (torch.strided, torch.float32). Hint: give a state dict, or a dict "
            "with 'model_state_dict'.",
        ),
        (
            lambda tmp: read_checkpoint(saved(tmp, {"state_dict": {}})),
            "a checkpoint of step-train fit (with the key 'step_scorer') at TMP/x.pt, found "
            "another one. Hint: train a scorer with step-train fit, or import a published one with "
            "--from-pt.",
        ),
        (
            lambda tmp: read_checkpoint(saved(tmp, {"step_scorer": {"schema_version": 7}})),
            "schema_version 1 of the checkpoint TMP/x.pt, found 7. "
            "Hint: train again with this toolkit.",
        ),
        (
            lambda tmp: export(
                saved(tmp, {"step_scorer": {"schema_version": 1}}), tmp / "scorer.safetensors"
            ),
            "a checkpoint of step-train fit in TMP/x.pt, found a damaged one (KeyError('model')). "
            "Hint: train again.",
        ),
        (
            lambda tmp: export(saved(tmp, sized(depth=10**9)), tmp / "scorer.safetensors"),
            "a checkpoint of step-train fit in TMP/x.pt, found a damaged one "
            "(ValueError('width 512 and depth 1000000000')). Hint: train again.",
        ),
        (
            lambda tmp: export(saved(tmp, sized(width=2**20)), tmp / "scorer.safetensors"),
            "tensor net.0.bias of shape (1048576,) in TMP/x.pt, found None. Hint: train again.",
        ),
        (
            lambda tmp: import_scorer(
                saved(tmp, network().state_dict()), tmp / "out", str(CHECKPOINT)
            ),
            f"hidden_size 256 (model {CHECKPOINT}), found 16 in TMP/x.pt. "
            "Hint: give the model whose hidden states the scorer was trained on.",
        ),
        (
            lambda tmp: read_network(saved(tmp, network(last=2).state_dict())),
            "weights of Linear(H, width), ReLU, Linear(width, 1), in this order, in TMP/x.pt, "
            "found weights of shapes (8, 16), (2, 8). "
            "Hint: only scorers of this form can be imported.",
        ),
        (
            lambda tmp: read_network(
                saved(tmp, network().state_dict() | {"0.bias": torch.full((8,), torch.nan)})
            ),
            "finite weights in TMP/x.pt, found NaN or infinity in 0.bias. "
            "Hint: take another checkpoint.",
        ),
        (
            lambda tmp: read_network(saved(tmp, {"lr": 0.1})),
            "only weights and biases of Linear(H, width), ReLU, Linear(width, 1) in TMP/x.pt, "
            "found 'lr'. Hint: give a state dict, or a dict with 'model_state_dict'.",
        ),
        (
            lambda tmp: read_network(saved(tmp, {"0.weight": torch.zeros(2, 2)})),
            "a weight and a bias for each layer of Linear(H, width), ReLU, Linear(width, 1) in "
            "TMP/x.pt, found 0.weight. Hint: give a state dict, or a dict with 'model_state_dict'.",
        ),
    ],
)
def test_files_of_a_run_and_of_others(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == f"Expected {text}"


def batches(traces, batch_size=4, memory_bytes=2**20, world_size=1):
    rows, table = FeatureRows(traces.shards()), read_traces(traces)[0]
    return TrainingBatches(
        rows, table, batch_size, memory_bytes, 0, lambda: 0, world_size=world_size
    )


def without_a_row(traces):
    table = read_traces(traces)[0]
    table.steps_N[-1] += 5
    return FeatureRows(traces.shards()).of_traces(table)


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda traces: batches(traces, batch_size=4, world_size=3),
            "a batch size that 3 devices can share evenly, found 4. "
            "Hint: change --batch-size or --devices.",
        ),
        (
            lambda traces: batches(traces, batch_size=65536, memory_bytes=1024),
            "memory for two batches (4.0 MiB), found 0.0 MiB. "
            "Hint: raise --memory-mib or lower --batch-size.",
        ),
        (
            lambda traces: require_components(16, FeatureRows(traces.shards()), 1024),
            "--components below the states' size 16, found 16. "
            "Hint: --components 0 trains on the states themselves.",
        ),
        (
            without_a_row,
            "the rows of every trace, NEEDED or more, in TMP/features/shard-00000.safetensors, "
            "found ROWS. Hint: the traces table and the features do not belong together.",
        ),
        (
            lambda traces: ScorerModule._require_finite(trainer_of(traces), float("nan")),
            "finite losses and logits, found nan. Hint: lower --learning-rate.",
        ),
        (
            lambda traces: score_steps(
                lambda hidden_BH: hidden_BH[:, 0].float() * torch.nan,
                FeatureRows(traces.shards()),
                read_traces(traces)[0],
            ),
            "a scorer with finite logits, found NaN or infinity. "
            "Hint: train again with a lower --learning-rate.",
        ),
        (
            lambda traces: read_step_facts(traces, _longer(traces)),
            "STEPS steps in the traces table of TMP, found ROWS. "
            "Hint: collect or extract the traces again.",
        ),
    ],
)
def test_features(refused, text, traces):
    rows = int(read_traces(traces)[0].num_steps)
    for name, number in {"NEEDED": rows + 5, "STEPS": rows + 5, "ROWS": rows}.items():
        text = text.replace(name, str(number))
    found = refusal(lambda: refused(traces)).replace(str(traces.path), "TMP")
    assert found == f"Expected {text}"


def test_traces_without_token_confidences(tmp_path):
    directory = write_traces(tmp_path, "label", changes={3: {"step_confidences": None}})
    found = refusal(lambda: read_confidences(directory, read_traces(directory)[0]))
    assert found == (
        f"Expected the token confidence at every step of {tmp_path}, found none at some. Hint: "
        "collect the traces with --confidence true, or use a scorer without it."
    )


def trainer_of(traces):
    """Return what a module's method sees of its trainer."""
    data = SimpleNamespace(rows=FeatureRows(traces.shards()))
    return SimpleNamespace(trainer=SimpleNamespace(datamodule=SimpleNamespace(data=data)))


def test_steps_of_another_rule_than_the_scorers(tmp_path):
    card = ScorerCard("some/model", "c" * 64, "t" * 64, 16, boundary=BOUNDARY, width=8)
    save_scorer(tmp_path / "scorer", StepScorer(16, 8), card)
    other = BOUNDARY | {"pattern": "other"}
    traces = changed(tmp_path / "traces", boundary=other).path
    config = EvaluateConfig(scorer=tmp_path / "scorer", traces=traces)
    assert refusal(lambda _: evaluate_scorer(config), tmp_path) == (
        "Expected traces with the scorer's boundary rule, found another one in TMP/traces. "
        "Hint: step-train extract can place the scorer's boundaries."
    )


@pytest.mark.parametrize(
    ("load", "text"),
    [
        (lambda tmp: load_model(tmp, "auto"), "Expected a Hugging Face model in TMP, found: "),
        (load_tokenizer, "Expected a tokenizer in TMP, found: "),
    ],
)
def test_a_folder_that_holds_no_model(load, text, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    found = refusal(lambda tmp: load(str(tmp)), tmp_path)
    assert found.startswith(text)
    assert len(found.partition(" Hint: ")[0]) > len(text) + 20  # the library's reason


def test_a_model_that_has_changed_since_is_not_used():
    identity = dataclasses.replace(identify(str(CHECKPOINT)), config_hash="c" * 64)
    found = question_baseline(SimpleNamespace(model=identity))
    assert found.not_computed == (
        f"model {CHECKPOINT} is not the one that made the traces any more"
    )


def _longer(traces):
    table = read_traces(traces)[0]
    table.steps_N[-1] += 5
    return table
