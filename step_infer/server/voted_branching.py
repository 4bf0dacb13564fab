"""The children of a voted call: what is known of its traces while they grow, and who gets one."""

from collections.abc import Mapping, Sequence
from typing import Any

from step_infer.client.branching import Branching, Family, GrowingTrace
from step_infer.client.trace import Trace, TracePlan
from step_infer.errors import InputError

_COUNTS_GENERATED = ("presence_penalty", "frequency_penalty", "thinking_token_budget")
"""Parameters by which vLLM counts generated tokens: inherited ones it takes for prompt."""


class CallFamily:
    """The traces of a voted call that branches."""

    def __init__(
        self, options: Branching, plans: Sequence[TracePlan], max_model_len: int, parameters: Any
    ) -> None:
        """Begin without children.

        Args:
            options: what is asked of a parent.
            plans: the orders of the call's traces.
            max_model_len: the model's context, in tokens.
            parameters: vLLM's sampling parameters of all traces.

        Raises:
            InputError: the prompt is not one of tokens, or a parameter counts generated tokens.
        """
        if not plans[0].prompt_token_ids:
            raise InputError(
                "Expected a prompt of text for a call that branches, found another one. "
                "Hint: leave branch out."
            )
        for name in _COUNTS_GENERATED:
            if getattr(parameters, name, None):
                raise InputError(
                    f"Expected no {name} for a call that branches, found "
                    f"{getattr(parameters, name)!r:.60}. Hint: leave one of the two out."
                )
        self._family = Family(options, plans, max_model_len)
        self._growing = {plan.trace_id: GrowingTrace(plan) for plan in plans}
        self._spare_tokens: int | None = None

    def see(self, number: int, token_ids: list[int], report: Mapping[str, Any]) -> None:
        """Note how far a running trace is.

        Args:
            number: of the trace.
            token_ids: the tokens that it has generated itself.
            report: what came with its newest output, perhaps nothing.
        """
        growing = self._growing[number]
        if growing.order.inherited is not None and not growing.token_ids:
            self._spare_tokens = None  # as of before the child had any memory
        growing.token_ids = token_ids
        growing.take(report)
        self._spare_tokens = report.get("spare_tokens", self._spare_tokens)

    def end(self, trace: Trace) -> None:
        """Take in a trace that has ended."""
        del self._growing[trace.trace_id]
        self._family.end(trace)

    def children(self) -> list[TracePlan]:
        """Return the orders for children that begin now."""
        if self._spare_tokens is None:
            return []
        orders = self._family.children(self._growing.values(), self._spare_tokens)
        self._growing |= {order.trace_id: GrowingTrace(order) for order in orders}
        return orders
