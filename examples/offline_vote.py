"""Answer a question by the vote of many traces, without a server.

usage: python examples/offline_vote.py [MODEL SCORER [QUESTION]]

Without arguments it asks the demo model, from the root of the repository.
"""

import sys

from step_infer import Sampling, StepLLM

DEMO = ("checkpoints/ledger-5m", "checkpoints/ledger-5m/scorer/scorer.safetensors")
SUM = "430+981+819+156+921+716+635+879+292+418+196+181+756 mod 1000 = ?"


def main() -> None:
    """Sample 16 traces in a KV cache that is too small for all of them, and let them vote."""
    model, scorer, *rest = sys.argv[1:] or DEMO
    demo = model == DEMO[0]
    # The demo model knows no system prompt, and is sampled as it was trained.
    asked = {"sampling": Sampling(temperature=1, top_p=1, top_k=0), "system": ""} if demo else {}
    engine = {"kv_budget_tokens": 6000, "max_model_len": 2400} if demo else {}
    with StepLLM(model, scorer, **engine) as llm:
        [result] = llm.generate([rest[0] if rest else SUM], n=16, progress=False, **asked)

    for trace in result.traces:
        score = "no score" if trace.trace_score is None else f"score {trace.trace_score:.2f}"
        tokens = len(trace.token_ids)
        print(f"trace {trace.trace_id:>2}: {trace.finish_reason:9} {tokens:>5} tokens, {score}")
    for answer, weight, voters in result.vote.groups:
        print(f"{answer}: weight {weight:.2f}, traces {list(voters)}")
    print(f"answer {result.answer}, {result.vote.share:.0%} of the votes, {result.seconds:.1f} s")


if __name__ == "__main__":  # vLLM may start processes of its own, which import this file
    main()
