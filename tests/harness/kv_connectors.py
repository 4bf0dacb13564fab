"""KV connectors that run on a CPU, for vLLM's own ways of taking them in by name.

`HostOffloadingSpec` is a storage for vLLM's OffloadingConnector, which decides what is stored and
loaded and when a block may be used again; its own storage needs a GPU. `KeepingConnector` moves
nothing: it keeps the blocks of requests that end for some steps, as one does that sends them
elsewhere, and says something to their clients.
"""

from typing import Any

import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


def offloading(cpu_bytes: int) -> KVTransferConfig:
    """Return what makes an engine store all KV blocks, up to so many bytes of them."""
    return KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={
            "spec_name": "HostOffloadingSpec",
            "spec_module_path": __name__,
            "cpu_bytes_to_use": cpu_bytes,
            "offload_prompt_only": False,
        },
    )


def keeping(steps: int) -> KVTransferConfig:
    """Return what makes an engine keep the blocks of ended requests for so many steps."""
    return KVTransferConfig(
        kv_connector="KeepingConnector",
        kv_connector_module_path=__name__,
        kv_role="kv_both",
        kv_connector_extra_config={"steps": steps},
    )


class HostOffloadingSpec(CPUOffloadingSpec):
    """Keeps blocks in tensors of the host."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        if self._worker is None:
            self._worker = HostWorker(kv_caches, int(self.extra_config["cpu_bytes_to_use"]))
        return self._worker


class HostWorker(OffloadingWorker):
    """Copies as late as it may: when it is waited for, or a step after it was asked.

    So a block that is used again too early is stored, or loaded, with the wrong contents.
    """

    def __init__(self, kv_caches: Any, cpu_bytes: int) -> None:
        self._device = [cache.tensor for cache in kv_caches.tensors]
        block_bytes = sum(tensor.shape[1] for tensor in self._device)
        chunks = cpu_bytes // block_bytes  # no fewer than the manager counts, which adds padding
        self._host = [t.new_zeros(chunks, t.shape[1]) for t in self._device]
        self._asked: dict[int, tuple[Any, Any, bool]] = {}
        self._due: list[int] = []
        self._done: list[int] = []
        self.stored = 0
        self.loaded = 0

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self._asked[job_id] = (src_spec.block_ids, dst_spec.block_ids, True)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self._asked[job_id] = (src_spec.block_ids, dst_spec.block_ids, False)
        return True

    def get_finished(self) -> list[TransferResult]:
        self.wait({job for job in self._due if job in self._asked})
        self._due = list(self._asked)
        done, self._done = self._done, []
        return [TransferResult(job_id=job, success=True) for job in done]

    def wait(self, job_ids: set[int]) -> None:
        for job_id in sorted(job_ids & self._asked.keys()):
            source, target, is_store = self._asked.pop(job_id)
            sources, targets = torch.as_tensor(source).long(), torch.as_tensor(target).long()
            ends = (self._device, self._host) if is_store else (self._host, self._device)
            for from_there, to_there in zip(*ends, strict=True):
                to_there[targets] = from_there[sources]
            self.stored += len(sources) * is_store
            self.loaded += len(sources) * (not is_store)
            self._done.append(job_id)


class KeepingConnector(KVConnectorBase_V1):
    """Both sides of it: the scheduler's, and the worker's."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._steps = self._kv_transfer_config.get_from_extra_config("steps", 1)
        self._left: dict[str, int] = {}
        self.kept: list[str] = []

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any]]:
        self.kept.append(request.request_id)
        return True, {"blocks": len(block_ids)}

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str], None]:
        """Return the requests whose blocks the worker is done with."""
        self._left |= dict.fromkeys(finished_req_ids, self._steps)
        self._left = {name: steps - 1 for name, steps in self._left.items()}
        sent = {name for name, steps in self._left.items() if steps < 0}
        self._left = {name: steps for name, steps in self._left.items() if steps >= 0}
        return sent, None

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        return 0, False

    def update_state_after_alloc(self, *args: Any) -> None:
        pass

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def start_load_kv(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass
