"""Node 0's side of a run with more nodes than one: brings the others to the same point, and sees when one is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from bafogpt.agent.multinode.heartbeat import Heartbeats, NodeStatus
from bafogpt.agent.outcome import ExitOutcome
from bafogpt.agent.workers import RankLayout, free_port
from bafogpt.core import process
from bafogpt.core.errors import ExitCode, StorageError

POLL_S = 0.05
GOODBYE_S = 10.0
"""How long node 0 waits for the others to have heard that the run has ended."""


class Leader:
    """What node 0 asks of the other nodes. ``halted`` says why the run must end instead of waiting, or None.

    A node may be away for ``storage_timeout_s``: started anew it joins the next generation.
    """

    def __init__(
        self,
        heartbeats: Heartbeats,
        *,
        attempt: int,
        storage_timeout_s: float,
        silent_s: float,
        halted: Callable[[], ExitOutcome | None],
        say: Callable[[str], None],
    ) -> None:
        self._heartbeats = heartbeats
        self._attempt = attempt
        self._patience_s = storage_timeout_s
        self._silent_s = silent_s
        self._halted = halted
        self._say = say
        self._incarnations: dict[int, str] = {}

    def start_heartbeats(self) -> None:
        self._heartbeats.start()

    def drain(self, generation: int, *, hung: bool) -> ExitOutcome | None:
        """Until no node has a trainer, and all that they saved is in the bucket."""
        self._heartbeats.publish(phase="draining", generation=generation, hung=hung)
        ending = self._wait_for("drained", generation)
        if ending is None:
            mine = self._heartbeats.status.processes
            for other in self._heartbeats.peers():
                if other.processes != mine:
                    message = f"node {other.node} has {other.processes} trainers, node 0 has {mine}"
                    hint = f"--set supervisor.processes={min(mine, other.processes)}"
                    return ExitOutcome("failed", message, hint, ExitCode.JOB_FAILED)
        return ending

    def restore(self, generation: int, resume_step: int | None) -> ExitOutcome | None:
        """Until all nodes have the checkpoint to go on from."""
        self._heartbeats.publish(phase="restoring", generation=generation, resume_step=resume_step)
        return self._wait_for("ready", generation)

    def layout(self, generation: int) -> RankLayout:
        """Where node 0's trainers stand in a generation, and their port, which is free."""
        nodes = self._heartbeats.nodes
        rendezvous_id = f"{self._attempt:04d}-{generation:04d}"
        address = nodes.addresses[0]
        return RankLayout(
            nodes=nodes.count, address=address, own=address, port=free_port(), rendezvous_id=rendezvous_id
        )

    def start(self, generation: int, layout: RankLayout) -> None:
        """All start their trainers."""
        others = self._heartbeats.peers()
        self._incarnations = {other.node: other.incarnation for other in others}
        status = self._heartbeats.status
        with contextlib.suppress(StorageError):
            self._heartbeats.write_generation(
                generation,
                resume_step=status.resume_step,
                port=layout.port,
                processes=[each.processes for each in (status, *others)],
            )
        self._heartbeats.publish(phase="running", generation=generation, port=layout.port)

    def check_peers(self, generation: int) -> str | None:
        """Why the trainers of a generation cannot go on, seen from the other nodes; None while they can."""
        for other in self._heartbeats.peers():
            if other.incarnation != self._incarnations.get(other.node):
                return f"node {other.node} was started anew"
            if other.phase == "died" and other.generation == generation:
                return f"node {other.node}: {other.why}"
        for node in self._heartbeats.overdue(self._silent_s):
            return f"node {node} has not been heard of for {self._silent_s:g} s"
        return None

    def fatal(self) -> ExitOutcome | None:
        """The end of the run, where another node knows that no restart can help."""
        for other in self._heartbeats.peers():
            if other.fatal:
                return ExitOutcome("failed", f"node {other.node}: {other.why}", other.hint, ExitCode(other.fatal))
        return None

    def stopping(self) -> list[int]:
        """The other nodes that were asked to stop."""
        return [other.node for other in self._heartbeats.peers() if other.stopping]

    def committed(self, step: int) -> None:
        """A checkpoint is in the bucket; nobody needs it on local disk."""
        self._heartbeats.publish(committed=step)

    def end(self, ending: ExitOutcome) -> None:
        """Tell the others that the run has ended, and wait a little until they have heard it."""
        self._heartbeats.publish(
            phase="ended",
            state=ending.state,
            message=ending.message,
            hint=ending.hint,
            exit_code=int(ending.exit_code),
        )
        process.wait_until(self._all_have_gone, GOODBYE_S)
        self._heartbeats.close()

    def _all_have_gone(self) -> bool:
        there = [other for other in self._heartbeats.peers() if self._heartbeats.last_seen_s(other.node) < GOODBYE_S]
        return self._heartbeats.error is not None or all(other.phase == "ended" for other in there)

    def _wait_for(self, phase: str, generation: int) -> ExitOutcome | None:
        """Until every other node has said ``phase`` of this generation. An ending where that cannot be."""
        told = time.monotonic()

        def arrived(status: NodeStatus | None) -> bool:
            return status is not None and (status.phase, status.generation) == (phase, generation)

        others = range(1, self._heartbeats.nodes.count)
        while not all(arrived(self._heartbeats.status_of(node)) for node in others):
            if (ending := self._halted() or self.fatal()) is not None:
                return ending
            lost = self._heartbeats.overdue(self._patience_s)
            if lost:
                names = ", ".join(f"node {node}" for node in lost)
                return ExitOutcome(
                    "failed",
                    f"{names} has not been heard of for {self._patience_s:g} s",
                    "bafogpt cloud launch … --resume",
                    ExitCode.JOB_FAILED,
                )
            if time.monotonic() - told > 30:
                told = time.monotonic()
                missing = [node for node in others if not arrived(self._heartbeats.status_of(node))]
                self._say(f"waiting for nodes {missing} to be {phase}")
            if isinstance(self._heartbeats.error, StorageError) and self._heartbeats.last_read_s() > self._patience_s:
                raise self._heartbeats.error
            time.sleep(POLL_S)
        return None
