"""A StepScheduler that writes down what it preempts, and in which step each request ends.

An engine is given it by its dotted path, so it writes to a file.
"""

import json
from pathlib import Path
from typing import Any

from step_infer import policy
from step_infer.scheduler import StepScheduler


class WatchedScheduler(StepScheduler):
    """Appends a line to EVENT_LOG.watched for each preemption and each end of a request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_steps = 0
        self._file = Path(f"{self.settings.event_log}.watched").open("a")  # noqa: SIM115

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self.num_steps += 1
        return super().schedule(*args, **kwargs)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        victim = policy.pick_victim(self._prunable(), self.live.kept)
        self._note(preempted=request.request_id, instead_of=victim and victim.request_id)
        return super()._preempt_request(request, *args, **kwargs)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().update_from_output(*args, **kwargs)
        for client in outputs.values():
            for output in client.outputs:
                if output.finish_reason is not None:
                    self._note(ended=output.request_id, step=self.num_steps)
        return outputs

    def _note(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
