"""Ask a server for many traces of one question, read their scores, and vote.

usage: python examples/serve_client.py [URL] [MODEL] [QUESTION]

The server is step-serve, or plain vllm serve with the flags of vllm_flags.sh. To get one answer for
one call instead, and do none of this, serve a voted model (docs/guides/voted_answers.md).
"""

import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import OpenAI

from step_infer.client.answers import extract_boxed, vote

TRACES = 8
SUM = "430+981+819+156+921+716+635+879+292+418+196+181+756 mod 1000 = ?"


def main() -> None:
    """Send one request a trace, all of one group, and print what comes back."""
    given = dict(enumerate(sys.argv))
    url, question = given.get(1, "http://localhost:8000"), given.get(3, SUM)
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = given.get(2) or client.models.list().data[0].id
    # Only traces of one group compete for memory; a name that nobody guesses keeps others out.
    group = uuid.uuid4().hex

    def ask(seed: int) -> Any:
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=1.0,
            seed=seed,
            extra_body={"vllm_xargs": {"step": group}},
        )

    with ThreadPoolExecutor(TRACES) as pool:
        responses = list(pool.map(ask, range(TRACES)))

    answers, weights = [], []
    for response in responses:
        choice, report = response.choices[0], response.kv_transfer_params["step"]
        answer = None if report["pruned"] else extract_boxed(choice.message.content or "")
        answers.append(answer)
        weights.append(0.5 if report["score"] is None else report["score"])
        scores = " ".join(f"{score:.2f}" for score in report["scores"][-5:])
        print(f"{'pruned' if report['pruned'] else answer}: last step scores {scores}")
    outcome = vote(answers, weights)
    print(f"answer {outcome.answer}, {outcome.share:.0%} of the votes")


if __name__ == "__main__":
    main()
