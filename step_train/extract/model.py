"""Where a model lies on this machine; nothing is downloaded for a report."""

from pathlib import Path

from step_infer.errors import InputError


def local_model(model: str) -> str:
    """Return the folder of a model: its own, or that in the Hugging Face cache.

    Raises:
        InputError: it is not on this machine.
    """
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise InputError(f"model {model} is not on this machine") from error
