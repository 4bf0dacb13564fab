"""A model folder whose weights are not all there is refused before an engine starts."""

import json
import shutil

import pytest
import torch
from places import CHECKPOINT, SCORER
from safetensors.torch import save_file

from step_infer.client.llm import StepLLM
from step_infer.client.weights import check_weights
from step_infer.errors import InputError
from step_infer.server import command as serve


@pytest.fixture
def folder(tmp_path):
    """A model folder of two shards with their index."""
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name, file in names.items():
        save_file({name: torch.ones(8), name + "0": torch.ones(0)}, tmp_path / file, {"x": "y"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_whole_weights_and_hub_ids_are_taken(folder):
    check_weights(str(folder))
    check_weights(str(CHECKPOINT))
    check_weights("org/some-model")
    (folder / "model.safetensors.index.json").write_text("[]")
    check_weights(str(folder))


def test_a_folder_without_weights_is_named(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(InputError, match="Expected weights .*, found none. Hint: the download"):
        check_weights(str(folder))


def test_a_missing_shard_is_named(folder):
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"Expected model-2\.safetensors in .*, found none"):
        check_weights(str(folder))


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_file_that_was_cut_off_is_named(folder, kept):
    file = folder / "model-2.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    size = file.stat().st_size
    with pytest.raises(
        InputError, match=rf"Expected .* at .*model-2.*, found {size} bytes .*. Hint"
    ):
        check_weights(str(folder))


def test_a_link_to_a_file_that_is_gone_is_named(folder):
    """The hub's cache has links to its files."""
    file = folder / "model-2.safetensors"
    file.unlink()
    file.symlink_to(folder / "gone")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match="Expected a file at .*model-2.*, found a link to nothing"):
        check_weights(str(folder))


def test_a_pointer_in_place_of_the_file_is_named(folder):
    (folder / "model-1.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="Expected a whole safetensors file at .*model-1"):
        check_weights(str(folder))


def test_no_engine_and_no_server_start_on_a_cut_file(tmp_path):
    model = shutil.copytree(CHECKPOINT, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(InputError, match="Expected a whole .* at .*, found 100,000 bytes"):
        StepLLM(str(model))
    arguments = [str(model), "--scorer", str(SCORER), "--print-command"]
    with pytest.raises(InputError, match="Expected a whole .* at .*, found 100,000 bytes"):
        serve._main(arguments)
    assert serve._main([*arguments, "--load_format=dummy"]) == 0
