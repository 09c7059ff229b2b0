"""The nodes of one run, and how they agree without a server: each writes its status to an object of its own.

::

    nodes/0001/node-0.json      node 0's status in attempt 1, rewritten every ``heartbeat_s`` seconds; node-1.json, …
    nodes/0001/0002.json        generation 2 of attempt 1: addresses, processes, checkpoint; for people
    nodes/parts/                see :mod:`bafogpt.agent.multinode.checkpoint_parts`

Node 0 decides, the others follow (:mod:`bafogpt.agent.multinode.follower`). A generation is one start of all trainers.
When node 0 is *draining*, the others end their trainers and upload what they saved (*drained*). When it is *restoring*,
they fetch the checkpoint of ``resume_step`` (*ready*). When it is *running*, all start their trainers. When trainers
die anywhere, node 0 drains for the next generation. A status holds all that its reader needs, so one that is missed or
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
from bafogpt.core.errors import BafoError, StorageError, UsageError
from bafogpt.storage.bucket import Bucket

Phase = Literal["joining", "draining", "drained", "restoring", "ready", "running", "died", "ended"]


@dataclass(frozen=True)
class Nodes:
    """Which of the run's machines this one is."""

    rank: int = 0
    addresses: tuple[str, ...] = ("127.0.0.1",)
    """IP addresses by rank."""

    @property
    def count(self) -> int:
        return len(self.addresses)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Nodes:
        """From ``SKYPILOT_NUM_NODES``, ``SKYPILOT_NODE_RANK`` and ``SKYPILOT_NODE_IPS`` (one per line).

        Raises :class:`UsageError` when they are inconsistent.
        """
        count, rank = (environment.get(f"SKYPILOT_{name}", "") for name in ("NUM_NODES", "NODE_RANK"))
        if count in ("", "1"):
            return cls()
        addresses = tuple(environment.get("SKYPILOT_NODE_IPS", "").split())
        if not (count.isdecimal() and rank.isdecimal() and int(rank) < int(count) == len(addresses)):
            raise UsageError(
                f"SKYPILOT_NUM_NODES={count}, SKYPILOT_NODE_RANK={rank}, SKYPILOT_NODE_IPS={' '.join(addresses)} "
                "are inconsistent",
                "num_nodes: 1",
            )
        return cls(int(rank), addresses)


SINGLE_NODE = Nodes()


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """The status of one node."""

    node: int
    incarnation: str
    """Identifies the supervisor process; a restarted one has another."""
    beat: int = 0
    phase: Phase = "joining"
    generation: int = 0
    processes: int = 1
    """Trainers on this node."""
    stopping: bool = False
    """Whether this node was asked to stop."""
    why: str = ""
    """How its trainers died."""
    hint: str = ""
    fatal: int = 0
    """Exit code of a failure that no restart can help; 0 otherwise."""
    resume_step: int | None = None
    """Node 0's: the checkpoint to resume from."""
    port: int = 0
    """Node 0's: the port of its trainers."""
    committed: int = -1
    """Node 0's: newest step whose manifest is in the bucket."""
    hung: bool = False
    """Node 0's: whether the last trainers hung."""
    state: str = ""
    """Node 0's: the run's, when it has ended."""
    message: str = ""
    exit_code: int = 0


class Heartbeats:
    """A thread that publishes this node's status and reads that of its peers: node 0's are all others, theirs node 0.

    ``clock`` is monotonic. While this node cannot reach the bucket, no peer counts as silent.
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
        self.status = NodeStatus(node=nodes.rank, incarnation=uuid.uuid4().hex[:8], processes=processes)
        """This node's, as it was published or is about to be."""
        self.error: StorageError | None = None
        self._folder = run.child(f"nodes/{attempt:04d}")
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._changed = threading.Event()
        self._closing = False
        self._lock = threading.Lock()
        self._published_at = -float("inf")
        self._peers = list(range(1, nodes.count)) if nodes.rank == 0 else [0]
        self._statuses: dict[int, NodeStatus] = {}
        self._seen_at = dict.fromkeys(self._peers, clock())
        self._read_at = clock()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def publish(self, **changes: object) -> None:
        """Change this node's status; the thread sends it at once."""
        with self._lock:
            self.status = replace(self.status, **changes)  # type: ignore[arg-type]
        self._changed.set()

    def status_of(self, node: int) -> NodeStatus | None:
        """A peer's last status; None before its first."""
        return self._statuses.get(node)

    def peers(self) -> list[NodeStatus]:
        """The last status of every peer that has one."""
        return [self._statuses[node] for node in self._peers if node in self._statuses]

    def silent_s(self, node: int) -> float:
        """Seconds from a peer's last new status to this node's last read."""
        return max(0.0, self._read_at - self._seen_at[node])

    def silent(self, longer_than_s: float) -> list[int]:
        """The peers without a new status for so long."""
        return [node for node in self._peers if self.silent_s(node) > longer_than_s]

    def unread_s(self) -> float:
        """Seconds since this node has last read its peers' status."""
        return self._clock() - self._read_at

    def write_generation(self, generation: int, **values: object) -> None:
        """Record a generation, for people."""
        body = {"generation": generation, "addresses": list(self.nodes.addresses), **values}
        self._folder.put(f"{generation:04d}.json", json.dumps(body, indent=1).encode())

    def close(self, **last: object) -> None:
        """Publish a last status and stop."""
        self.publish(**last)
        self._closing = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def exchange(self) -> None:
        """Publish, if the status has changed or a heartbeat is due, and read the peers.

        Called by the thread. Raises :class:`StorageError`.
        """
        with self._lock:
            due = self._changed.is_set() or self._clock() - self._published_at >= self._heartbeat_s
            self._changed.clear()
            if due:
                self.status = replace(self.status, beat=self.status.beat + 1)
            status = self.status
        if due:
            try:
                self._folder.put(f"node-{self.nodes.rank}.json", json.dumps(asdict(status)).encode())
                self._published_at = self._clock()
            except StorageError:
                self._changed.set()
                raise
        for node in self._peers:
            found = read(self._folder, node)
            if found is not None and found != self._statuses.get(node):
                self._statuses[node] = found
                self._seen_at[node] = self._clock()
        self._read_at = self._clock()

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
                time.sleep(min(1.0, self._heartbeat_s))
            elif not self._closing:
                self._changed.wait(self._heartbeat_s / 2)


def read(folder: Bucket, node: int) -> NodeStatus | None:
    """A node's status in the bucket; None where there is none that can be read, such as one of another version."""
    try:
        return schema.build(NodeStatus, json.loads(folder.get(f"node-{node}.json")), where=folder.url)
    except StorageError:
        raise
    except (BafoError, ValueError):
        return None


def attempts(run: Bucket) -> list[int]:
    """The attempts at a run with several nodes, oldest first."""
    return sorted(int(name) for name in run.folders("nodes/") if name.isdecimal())
