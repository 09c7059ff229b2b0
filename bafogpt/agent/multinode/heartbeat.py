"""The nodes of one run, and how they agree without a server: each tells what it does in an object of its own.

::

    nodes/0001/node-0.json       what node 0 does in attempt 1, rewritten every ``heartbeat_s`` seconds; node-1.json, …
        nodes/0001/0002.json         generation 2 of attempt 1: who trains from which checkpoint; for people
    nodes/parts/0001-0002/step-00000040/node-1.json
                                node 1's files of a checkpoint of that generation (:mod:`bafogpt.agent.uploader`)

Node 0 decides, the others follow (:mod:`bafogpt.agent.multinode.follower`). A generation is one start of all trainers.
Node 0 says *gathering*: the others end their trainers and send what they saved (*settled*). It says *preparing*: they
fetch the checkpoint of ``resume_step`` (*ready*). It says *running*: all start their trainers. When trainers die
anywhere, node 0 gathers for the next generation. Each message says all that its reader needs, so one that is missed or
read twice does no harm.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from bafogpt.core import schema
from bafogpt.core.errors import BafoError, CorruptError, NotFoundError, StorageError, UsageError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.manifest import CheckpointFile

Phase = Literal["joining", "draining", "drained", "restoring", "ready", "running", "died", "ended"]


@dataclass(frozen=True)
class Nodes:
    """Which of the run's machines this one is, as SkyPilot says it."""

    rank: int = 0
    addresses: tuple[str, ...] = ("127.0.0.1",)
    """IP addresses by rank."""

    @property
    def count(self) -> int:
        return len(self.addresses)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Nodes:
        """From ``SKYPILOT_NUM_NODES``, ``SKYPILOT_NODE_RANK`` and ``SKYPILOT_NODE_IPS`` (one a line).

        Raises :class:`UsageError` when they do not fit together.
        """
        count, rank = (environment.get(f"SKYPILOT_{name}") for name in ("NUM_NODES", "NODE_RANK"))
        if count in (None, "", "1"):
            return cls()
        addresses = tuple(environment.get("SKYPILOT_NODE_IPS", "").split())
        numbers = str(count).isdecimal() and str(rank).isdecimal()
        if not numbers or not int(str(rank)) < int(str(count)) == len(addresses):
            raise UsageError(
                f"SKYPILOT_NUM_NODES={count}, SKYPILOT_NODE_RANK={rank}, SKYPILOT_NODE_IPS={' '.join(addresses)} "
                "do not fit together",
                "num_nodes: 1",
            )
        return cls(int(str(rank)), addresses)


ALONE = Nodes()


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """What a node tells the others."""

    node: int
    incarnation: str
    """A supervisor process; one that is started again is another."""
    beat: int = 0
    phase: Phase = "joining"
    generation: int = 0
    processes: int = 1
    """Trainers on this node."""
    stopping: bool = False
    """Somebody asked this node to stop."""
    why: str = ""
    """How its trainers died."""
    hint: str = ""
    fatal: int = 0
    """Exit code of what no restart can help; 0 otherwise."""
    resume_step: int | None = None
    """Node 0's: the checkpoint to go on from."""
    port: int = 0
    """Node 0's: where its trainers listen."""
    committed: int = -1
    """Node 0's: newest step whose manifest is in the bucket."""
    hung: bool = False
    """Node 0's: the trainers that were ended last had hung."""
    state: str = ""
    """Node 0's: the run's, when it has ended."""
    message: str = ""
    exit_code: int = 0


class Heartbeats:
    """One node's place among the nodes of an attempt: a thread that tells its status and hears the others'.

    ``clock`` is monotonic. While this node cannot reach the bucket, it holds nobody else for silent.
    """

    def __init__(
        self,
        run: Bucket,
        attempt: int,
        nodes: Nodes,
        *,
        processes: int,
        heartbeat_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.nodes = nodes
        self._folder = run.child(f"nodes/{attempt:04d}")
        self._beat_s = heartbeat_s
        self._clock = clock
        self._status = NodeStatus(node=nodes.rank, incarnation=uuid.uuid4().hex[:8], processes=processes)
        self._changed = threading.Event()
        self._closing = False
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._told_at = -float("inf")
        self._others = list(range(1, nodes.count)) if nodes.rank == 0 else [0]
        self._heard: dict[int, NodeStatus] = {}
        self._heard_at = dict.fromkeys(self._others, clock())
        self._listened_at = clock()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self.error: StorageError | None = None

    def start(self) -> None:
        self._thread.start()

    @property
    def status(self) -> NodeStatus:
        """This node's, as it was told or is about to be."""
        return self._status

    def publish(self, **changes: object) -> None:
        """Change this node's status; it is sent at once, by the thread."""
        with self._lock:
            self._status = replace(self._status, **changes)  # type: ignore[arg-type]
        self._changed.set()

    def status_of(self, node: int) -> NodeStatus | None:
        """What a node said last; None before it has said anything."""
        return self._heard.get(node)

    def peers(self) -> list[NodeStatus]:
        """What all those listened to have said last."""
        return [self._heard[node] for node in self._others if node in self._heard]

    def last_seen_s(self, node: int) -> float:
        """For how long a node has given no sign of life, as far as this node can know."""
        return max(0.0, self._listened_at - self._heard_at[node])

    def overdue(self, longer_than_s: float) -> list[int]:
        """The nodes that have given no sign of life for so long."""
        return [node for node in self._others if self.last_seen_s(node) > longer_than_s]

    def last_read_s(self) -> float:
        """For how long this node has not been able to hear anybody."""
        return self._clock() - self._listened_at

    def write_generation(self, generation: int, **values: object) -> None:
        """Write down a generation. For people: nobody follows it."""
        body = {"generation": generation, "addresses": list(self.nodes.addresses), **values}
        self._folder.put(f"{generation:04d}.json", json.dumps(body, indent=1).encode())

    def close(self, **last: object) -> None:
        """Tell one last thing and stop."""
        self.publish(**last)
        self._closing = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def exchange(self) -> None:
        """Tell, if there is something to tell or a beat is due, and hear. Raises :class:`StorageError`."""
        with self._telling:
            with self._lock:
                changed = self._changed.is_set()
                self._changed.clear()
                if changed or self._clock() - self._told_at >= self._beat_s:
                    self._status = replace(self._status, beat=self._status.beat + 1)
                    changed = True
                status = self._status
            if changed:
                try:
                    self._folder.put(f"node-{self.nodes.rank}.json", json.dumps(asdict(status)).encode())
                    self._told_at = self._clock()
                except StorageError:
                    self._changed.set()
                    raise
            for node in self._others:
                found = read(self._folder, node)
                if found is not None and found != self._heard.get(node):
                    self._heard[node] = found
                    self._heard_at[node] = self._clock()
            self._listened_at = self._clock()

    def _run(self) -> None:
        while True:
            closing = self._closing
            try:
                self.exchange()
                self.error = None
            except StorageError as error:
                self.error = error
            if closing:
                return
            if self.error is not None:
                time.sleep(min(1.0, self._beat_s))
            elif not self._closing:
                self._changed.wait(self._beat_s / 2)


def read(folder: Bucket, node: int) -> NodeStatus | None:
    """A node's status as the bucket has it; None where there is none that can be read."""
    try:
        return schema.build(NodeStatus, json.loads(folder.get(f"node-{node}.json")), where=folder.url)
    except (NotFoundError, ValueError):
        return None
    except BafoError as error:
        if isinstance(error, StorageError):
            raise
        return None  # of another version


def attempts(run: Bucket) -> list[int]:
    """The attempts at a run that have had more nodes than one, oldest first."""
    return sorted(int(name) for name in run.folders("nodes/") if name.isdecimal())


class PartMissingError(CorruptError):
    """A node lost what it had saved of a checkpoint, which can never be complete now."""


class CheckpointParts:
    """The lists of files that each node has sent of a checkpoint, until node 0 names them all in its manifest."""

    def __init__(self, run: Bucket) -> None:
        self._bucket = run.child("nodes/parts")

    def put(self, launch: str, step: int, node: int, sent: tuple[CheckpointFile, ...]) -> None:
        body = json.dumps([asdict(each) for each in sent]).encode()
        self._bucket.put(f"{launch}/step-{step:08d}/node-{node}.json", body)

    def get(self, launch: str, step: int, nodes: int) -> tuple[CheckpointFile, ...] | None:
        """The files of nodes 1, 2, … ``nodes`` - 1; None while the list of one of them is missing."""
        files: list[CheckpointFile] = []
        for node in range(1, nodes):
            name = f"{launch}/step-{step:08d}/node-{node}.json"
            try:
                raw = json.loads(self._bucket.get(name))
            except NotFoundError:
                return None
            files += [schema.build(CheckpointFile, each, where=f"{self._bucket.url}/{name}") for each in raw]
        return tuple(files)

    def clear(self, launch: str, step: int) -> None:
        """Remove the lists of a checkpoint that is committed."""
        self._bucket.delete_tree(f"{launch}/step-{step:08d}")
