"""A training command on two nodes: two processes of this machine that meet at an address.

Each is started by hand, as docs/guides/scale_out.md says; only the network between them is missing.
"""

import os
import socket
import subprocess
import sys

from places import ROOT


def run_on_two_nodes(*arguments: object) -> list[subprocess.CompletedProcess]:
    """Run `step-train` on two nodes at once, and wait for both.

    Returns:
        What each left, the first node's first; output is text.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "step_train.commands", *map(str, arguments)]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    nodes = [
        subprocess.Popen(
            [*command, "--num-nodes", "2"],
            cwd=ROOT,
            env={**os.environ, **where, "NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        written = [node.communicate(timeout=300) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [
        subprocess.CompletedProcess(node.args, node.returncode, *texts)
        for node, texts in zip(nodes, written, strict=True)
    ]
