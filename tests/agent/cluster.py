"""Nodes of one run as processes on one machine, each with a disk of its own, and a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bafogpt.core import process, schema
from bafogpt.runs.store import RunStore
from bafogpt.storage.bucket import Bucket

HERE = Path(__file__).parent
TIMEOUT_S = 120.0


class Node:
    """One supervisor process."""

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        self.output = output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    def trainers(self) -> list[psutil.Process]:
        return [each for each in process.descendants(self.process.pid) if "worker" in " ".join(each.cmdline())]

    def kill(self) -> None:
        """Supervisor and trainers at once, as when a machine is lost."""
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        """The exit code."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.output.read_text()[-3000:]) from None


class Cluster:
    """Starts nodes of the run ``run``; they are killed when the context ends."""

    def __init__(self, bucket: Bucket, environment: dict[str, str], home: Path, worker: str = "") -> None:
        self.bucket = bucket
        self.store = RunStore(bucket)
        self.started: list[Node] = []
        self._environment = environment
        self._home = home
        self._worker = [str(HERE / worker)] if worker else []

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.started:
            if node.process.poll() is None:
                node.kill()

    def start(self, rank: int, count: int, job: Any, **variables: str) -> Node:
        path = self._home / f"job-{len(self.started)}.json"
        path.write_text(json.dumps(schema.to_dict(job)))
        environment = {
            **os.environ,
            **self._environment,
            "BAFOGPT_BUCKET": self.bucket.url,
            "PYTHONPATH": str(HERE.parents[1]),
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_NODES": str(count),
            "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * count),
            **variables,
        }
        command = [sys.executable, str(HERE / "node.py"), str(path), "run", str(self._home / f"disk-{rank}")]
        node = Node([*command, *self._worker], environment, self._home / f"output-{rank}.txt")
        self.started.append(node)
        return node

    def both(self, job: Any, **variables: str) -> tuple[Node, Node]:
        return self.start(0, 2, job, **variables), self.start(1, 2, job, **variables)

    def succeed(self, *nodes: Node) -> None:
        """Wait until they end with exit code 0."""
        for node in nodes:
            code = node.wait()
            assert code == 0, node.output.read_text()[-3000:]

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: any(line["step"] >= step for line in self.store.metrics("run")), f"step {step}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        if not process.wait_until(condition, TIMEOUT_S):
            said = "".join(f"\n--- {each.output}\n{each.output.read_text()[-2500:]}" for each in self.started)
            raise AssertionError(f"no {what} after {TIMEOUT_S:g} s{said}")

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.store.events("run") if event["event"] == kind]
