"""Features by a forward pass: the right rows of the right layer, in whole parts, resumably."""

import itertools
import json
import random
import shutil

import pytest
import torch
from command_harness import run_command
from two_nodes import run_on_two_nodes

from data_gen.ledger.questions import iter_questions
from data_gen.ledger.reasoner import Reasoner
from data_gen.ledger.tokenizer import build_tokenizer, prompt_text
from data_gen.traces.directory import TraceDirectory
from data_gen.traces.writer import TraceWriter
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.identity import identify
from step_infer.scorer.network import load_scorer
from step_infer.storage.run_directory import read_manifest, write_manifest
from step_train.commands import main
from step_train.demo_model.export import export_model, new_model
from step_train.export.run import export
from step_train.extract.batches import length_batches
from step_train.extract.config import ExtractBoundary, ExtractConfig
from step_train.extract.run import extract
from step_train.fit.config import FitConfig
from step_train.fit.run import fit


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with random weights, as small as it gets."""
    folder = tmp_path_factory.mktemp("model") / "random"
    torch.manual_seed(0)
    export_model(new_model(2, 128, 256), folder)
    return str(folder)


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
    """Traces of the reasoner, without features: three parts of four."""
    path = tmp_path_factory.mktemp("source") / "traces"
    tokenizer = build_tokenizer()
    identity = identify(model)
    manifest = {
        "model": model,
        "identity": {
            "config_hash": identity.config_hash,
            "tokenizer_hash": identity.tokenizer_hash,
            "hidden_size": 128,
        },
        "boundary": BoundaryRule.for_tokenizer(tokenizer).to_dict(),
        "sampling": {"temperature": 1.0},
    }
    rng = random.Random(0)
    rows = []
    for number, question in enumerate(itertools.islice(iter_questions("test"), 12)):
        trace = Reasoner().trace(question.numbers, rng)
        text = trace.text if number != 5 else "no step here</think>"
        # Of different lengths; cut off in the middle of the thinking.
        tokens = tokenizer.encode(text, add_special_tokens=False)[: 300 + 37 * number]
        rows.append(
            {
                "question_id": question.id,
                "trace_id": 0,
                "seed": number,
                "question": question.text,
                "ground_truth": str(question.answer),
                "prompt_token_ids": tokenizer.encode(
                    prompt_text(question.text), add_special_tokens=False
                ),
                "token_ids": tokens,
                "text": tokenizer.decode(tokens),
                "finish_reason": "stop",
                "extracted_answer": str(trace.answer),
                "is_correct": trace.correct,
                "answer_group": 0,
                "boundary_positions": [],
                "step_scores": [],
            }
        )
    with TraceWriter(path, {}, **manifest) as out:
        for start in (0, 4, 8):
            out.add_part(rows[start : start + 4], None)
        out.update(complete=True)
    return path


def config(model, source, out, **options):
    return ExtractConfig(
        model, source, out, **({"progress": False, "accelerator": "cpu"} | options)
    )


@pytest.fixture(scope="module")
def extracted(model, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("extracted") / "traces"
    return extract(config(model, source, out, dtype="float32", batch_tokens=1500))


def reference(model, row, dtype=torch.float32):
    """Return a trace's states at its boundaries, by a forward pass of that trace alone."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    ids = torch.tensor([row["prompt_token_ids"] + row["token_ids"]])
    with torch.inference_mode():
        output = whole(ids, output_hidden_states=True)
        # The states are those that the model's head reads: after the final norm.
        logits = whole.lm_head(output.hidden_states[-1])
    torch.testing.assert_close(logits, output.logits)
    places = torch.tensor(row["boundary_positions"]) + len(row["prompt_token_ids"])
    return output.hidden_states[-1][0, places]


def test_states_are_those_of_a_forward_pass_of_each_trace_alone(model, extracted):
    checked = 0
    for index, shard in enumerate(extracted.shards()):
        for row in extracted.part(index).to_pylist():
            if row["num_steps"] and checked < 6:
                found = shard.hidden(row["row_start"], row["row_start"] + row["num_steps"])
                torch.testing.assert_close(found, reference(model, row), atol=1e-4, rtol=1e-4)
                checked += 1


def test_a_scorer_is_trained_on_extracted_states(model, extracted, tmp_path):
    options = {"max_epochs": 2, "width": 16, "val_fraction": 0.3, "test_fraction": 0.3}
    # Twelve traces of twelve questions: this seed's splits have right and wrong ones.
    result = fit(FitConfig(extracted.path, tmp_path / "run", 0, progress=False, **options))
    card = export(result.run, tmp_path / "scorer.safetensors", force=True)
    assert (card.layer, card.hidden_size) == ("last", 128)
    scorer, _ = load_scorer(tmp_path / "scorer.safetensors", expect=identify(model))
    assert scorer(torch.zeros(3, 128)).shape == (3,)


def test_traces_are_copied_with_their_boundaries(source, extracted):
    before = TraceDirectory(source)
    rule = BoundaryRule.from_dict(before.manifest["boundary"])
    assert extracted.num_parts == before.num_parts
    assert extracted.complete
    extracted.verify()
    for index, shard in enumerate(extracted.shards()):
        rows = zip(before.part(index).to_pylist(), extracted.part(index).to_pylist(), strict=True)
        positions = []
        for old, new in rows:
            assert new["boundary_positions"] == rule.positions(old["token_ids"])
            assert new["num_steps"] == len(new["boundary_positions"])
            assert new["step_scores"] is None or new["step_scores"] == old["step_scores"]
            for name in ("question_id", "token_ids", "text", "is_correct", "prompt_token_ids"):
                assert new[name] == old[name]
            positions += new["boundary_positions"]
        assert shard.position().tolist() == positions
        assert shard.hidden_size == 128


def test_the_manifest_names_the_model_and_the_source(model, source, extracted):
    manifest = extracted.manifest
    assert manifest["identity"]["config_hash"] == identify(model).config_hash
    assert manifest["source"] == str(source)
    assert manifest["sampling"] == {"temperature": 1.0}


@pytest.mark.parametrize(
    ("products", "dtype", "expected"),
    [
        (True, "auto", torch.bfloat16),
        (False, "auto", torch.float32),
        (False, "bfloat16", torch.bfloat16),
    ],
)
def test_the_models_own_number_format_is_kept_where_the_processor_is_fast_in_it(
    model, source, tmp_path, monkeypatch, products, dtype, expected
):
    features = {"architecture": "x86_64", "avx512_bf16": products}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    directory = extract(config(model, source, tmp_path / "out", dtype=dtype))
    assert {shard.dtype for shard in directory.shards()} == {expected}


def test_a_number_format_that_another_machine_chose_is_not_mixed_with_its_own(
    model, source, tmp_path, monkeypatch
):
    for products in (False, True):
        features = {"architecture": "x86_64", "avx512_bf16": products}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=features: found)
        settings = config(model, source, tmp_path / "out")
        if products:
            with pytest.raises(InputError, match="Expected dtype 'float32' .*, found 'auto'"):
                extract(settings)
        else:
            extract(settings)


def test_other_boundaries_can_be_chosen(model, source, tmp_path):
    directory = extract(
        config(model, source, tmp_path / "out", boundary=ExtractBoundary("stride", stride=50))
    )
    row = directory.part(0).to_pylist()[0]
    assert row["boundary_positions"][:2] == [49, 99]


def test_traces_without_any_boundary_are_told(model, source, extracted, tmp_path, capsys):
    rule = {"kind": "regex", "pattern": "@"}
    directory = extract(config(model, source, tmp_path / "out", boundary=ExtractBoundary(**rule)))
    assert directory.num_steps == 0
    told = capsys.readouterr().err
    assert told.count("no trace of the first part has a step boundary") == 1
    assert "--boundary.kind" in told
    extract(config(model, source, tmp_path / "other"))
    assert "has a step boundary" not in capsys.readouterr().err


def test_a_hub_model_is_read_at_the_revision_that_made_the_traces(source, tmp_path):
    copy = tmp_path / "traces"
    shutil.copytree(source, copy)
    manifest = read_manifest(copy)
    made_by = manifest["identity"] | {"revision": "v1"}
    write_manifest(copy, manifest | {"model": "org/name", "identity": made_by})
    for model, options, named in (
        ("org/name", {}, "'org/name' at revision 'v1'"),
        ("org/name", {"revision": "v2"}, "'org/name' at revision 'v2'"),
        ("org/other", {}, r"'org/other' \("),
    ):
        with pytest.raises(InputError, match=f"reachable hub id, found {named}"):
            extract(config(model, copy, tmp_path / "out", **options))


def test_another_end_of_thinking_wants_a_rule_of_its_own():
    with pytest.raises(InputError, match=r"Expected --boundary.kind beside --boundary.think-end"):
        ExtractBoundary(think_end="[/THINK]")
    assert ExtractBoundary("blank_line", think_end="[/THINK]").think_end == "[/THINK]"


def test_an_interrupted_extraction_goes_on(model, source, extracted, tmp_path, monkeypatch):
    options = {"dtype": "float32", "batch_tokens": 1500}
    add_part = TraceWriter.add_part

    def fail_at_the_third(self, *arguments, **fields):
        if len(self.manifest["parts"]) == 2:
            raise RuntimeError("interrupted")
        add_part(self, *arguments, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(TraceWriter, "add_part", fail_at_the_third)
        with pytest.raises(RuntimeError, match="interrupted"):
            extract(config(model, source, tmp_path / "out", **options))
    unfinished = TraceDirectory(tmp_path / "out")
    assert (unfinished.num_parts, unfinished.complete) == (2, False)
    times = [path.stat().st_mtime_ns for path in unfinished.part_paths()]
    directory = extract(config(model, source, tmp_path / "out", **options))
    assert [p.stat().st_mtime_ns for p in directory.part_paths()][:2] == times
    assert directory.complete
    assert [part["features"]["sha256"] for part in directory.manifest["parts"]] == [
        part["features"]["sha256"] for part in extracted.manifest["parts"]
    ]


def test_two_nodes_share_the_parts_and_write_what_one_process_does(
    model, source, extracted, tmp_path
):
    out = tmp_path / "out"
    options = ["--model", model, "--traces", source, "--out", out, "--accelerator", "cpu"]
    nodes = run_on_two_nodes("extract", *options, "--dtype", "float32", "--batch-tokens", "1500")
    assert [node.returncode for node in nodes] == [0, 0], [node.stderr for node in nodes]
    found = TraceDirectory(out)
    assert found.complete
    assert found.num_parts == extracted.num_parts
    for index in range(found.num_parts):
        assert found.part(index).equals(extracted.part(index))
        # Lightning gives two processes of a machine one thread each: products may be summed anew.
        torch.testing.assert_close(found.shard(index).hidden(), extracted.shard(index).hidden())
    assert not (out / ".pieces").exists()


def test_a_complete_extraction_is_left_alone(model, source, extracted, monkeypatch):
    monkeypatch.setattr("step_train.extract.run._run", None)
    extract(config(model, source, extracted.path, dtype="float32"))


def test_other_settings_in_the_same_directory_are_refused(model, source, extracted):
    with pytest.raises(InputError, match="Expected dtype 'float32'"):
        extract(config(model, source, extracted.path))
    with pytest.raises(InputError, match="another directory"):
        extract(config(model, source, source))


def test_a_damaged_part_is_named_in_one_line_and_what_is_done_is_kept(
    model, source, extracted, tmp_path
):
    damaged = tmp_path / "damaged"
    shutil.copytree(source, damaged)
    part = damaged / "traces" / "part-00002.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    options = ["--model", model, "--traces", damaged, "--out", tmp_path / "out"]
    options += ["--accelerator", "cpu", "--batch-tokens", "1500", "--dtype", "float32"]
    done = run_command(main, "extract", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Expected a Parquet file at ")
    assert str(part) in done.stderr
    assert done.stderr.count("\n") == 1
    assert TraceDirectory(tmp_path / "out").num_parts == 1
    part.write_bytes(whole)
    done = run_command(main, "extract", *options)
    assert done.returncode == 0, done.stderr
    found = TraceDirectory(tmp_path / "out")
    assert found.complete
    for one, other in zip(found.shards(), extracted.shards(), strict=True):
        assert torch.equal(one.hidden(), other.hidden())


def test_a_model_of_another_vocabulary_is_refused(model, source, tmp_path):
    copy = tmp_path / "traces"
    copy.mkdir()
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["identity"]["tokenizer_hash"] = "x" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="Expected tokenizer_hash xxxxxxxxxxxx…"):
        extract(config(model, copy, tmp_path / "out"))
    with pytest.raises(InputError, match="Expected a model folder"):
        extract(config("/no/such/model", source, tmp_path / "out"))


def test_batches_hold_traces_of_similar_length_within_the_budget():
    rng = random.Random(0)
    lengths = [rng.randrange(0, 900) for _ in range(200)] + [5000]
    batches = length_batches(lengths, 4000)
    assert batches[0] == [200]
    assert sorted(i for batch in batches for i in batch) == [i for i, n in enumerate(lengths) if n]
    padded = [len(batch) * max(lengths[i] for i in batch) for batch in batches[1:]]
    assert max(padded) <= 4000
    assert sum(padded) < 1.2 * sum(lengths[:-1])
