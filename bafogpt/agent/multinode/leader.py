"""Node 0's side of a run with several nodes: it brings the others to the same point, and detects when one is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from bafogpt.agent.attempt import Attempt
from bafogpt.agent.multinode.heartbeat import Heartbeats, Nodes, NodeStatus, Phase
from bafogpt.agent.outcome import ExitOutcome, RunEndedError, resume_hint
from bafogpt.agent.workers import RankLayout, free_port
from bafogpt.core import process
from bafogpt.core.errors import ExitCode, StorageError

POLL_S = 0.05
REPORT_S = 30.0
GOODBYE_S = 10.0
"""How long node 0 waits until the others have read that the run has ended."""


class Leader:
    """``halted`` is why the run must end instead of waiting, or None.

    A node may be away for ``storage_timeout_s``: when it is started again it joins the next generation.
    """

    def __init__(self, attempt: Attempt, nodes: Nodes, halted: Callable[[], ExitOutcome | None]) -> None:
        config = attempt.config
        self._attempt = attempt
        self._timeout_s = config.storage_timeout_s
        self._heartbeat_timeout_s = config.heartbeat_timeout_s
        self._halted = halted
        self._incarnations: dict[int, str] = {}
        self._heartbeats = Heartbeats(
            attempt.run, attempt.number, nodes, processes=attempt.processes, heartbeat_s=config.heartbeat_s
        )

    def start(self) -> None:
        self._heartbeats.start()

    def drain(self, generation: int, *, hung: bool) -> None:
        """Wait until no node has a trainer and all that they saved is in the bucket. Raises :class:`RunEndedError`."""
        self._heartbeats.publish(phase="draining", generation=generation, hung=hung)
        self._wait_for("drained", generation)
        mine = self._heartbeats.status.processes
        for peer in self._heartbeats.peers():
            if peer.processes != mine:
                message = f"node {peer.node} has {peer.processes} trainers, node 0 has {mine}"
                hint = f"--set supervisor.processes={min(mine, peer.processes)}"
                raise RunEndedError(ExitOutcome("failed", message, hint, ExitCode.JOB_FAILED))

    def restore(self, generation: int, resume_step: int | None) -> None:
        """Wait until all nodes have the checkpoint to resume from. Raises :class:`RunEndedError`."""
        self._heartbeats.publish(phase="restoring", generation=generation, resume_step=resume_step)
        self._wait_for("ready", generation)

    def layout(self, generation: int) -> RankLayout:
        """The place of node 0's trainers in a generation, with a free port."""
        nodes = self._heartbeats.nodes
        address = nodes.addresses[0]
        return RankLayout(
            nodes=nodes.count,
            address=address,
            own=address,
            port=free_port(),
            rendezvous_id=f"{self._attempt.number:04d}-{generation:04d}",
        )

    def start_generation(self, generation: int, layout: RankLayout) -> None:
        """Have all nodes start their trainers."""
        peers, status = self._heartbeats.peers(), self._heartbeats.status
        self._incarnations = {peer.node: peer.incarnation for peer in peers}
        processes = [each.processes for each in (status, *peers)]
        with contextlib.suppress(StorageError):
            self._heartbeats.write_generation(
                generation, resume_step=status.resume_step, port=layout.port, processes=processes
            )
        self._heartbeats.publish(phase="running", generation=generation, port=layout.port)

    def check_peers(self, generation: int) -> str | None:
        """Why the trainers of a generation cannot go on, by the other nodes' status; None while they can."""
        for peer in self._heartbeats.peers():
            if peer.incarnation != self._incarnations.get(peer.node):
                return f"node {peer.node} was restarted"
            if peer.phase == "died" and peer.generation == generation:
                return f"node {peer.node}: {peer.why}"
        for node in self._heartbeats.silent(self._heartbeat_timeout_s):
            return f"node {node} has sent no heartbeat for {self._heartbeat_timeout_s:g} s"
        return None

    def check_fatal(self) -> None:
        """Raise :class:`RunEndedError` where another node has a failure that no restart can help."""
        for peer in self._heartbeats.peers():
            if peer.fatal:
                message = f"node {peer.node}: {peer.why}"
                raise RunEndedError(ExitOutcome("failed", message, peer.hint, ExitCode(peer.fatal)))

    def stopping(self) -> list[int]:
        """The other nodes that were asked to stop."""
        return [peer.node for peer in self._heartbeats.peers() if peer.stopping]

    def committed(self, step: int) -> None:
        """A checkpoint is in the bucket; no node needs it on local disk."""
        self._heartbeats.publish(committed=step)

    def end(self, outcome: ExitOutcome) -> None:
        """Publish that the run has ended, and wait a little until the others have read it."""
        self._heartbeats.publish(
            phase="ended",
            state=outcome.state,
            message=outcome.message,
            hint=outcome.hint,
            exit_code=int(outcome.exit_code),
        )
        process.wait_until(self._all_have_ended, GOODBYE_S)
        self._heartbeats.close()

    def _all_have_ended(self) -> bool:
        heartbeats = self._heartbeats
        alive = [peer for peer in heartbeats.peers() if heartbeats.silent_s(peer.node) < GOODBYE_S]
        return heartbeats.error is not None or all(peer.phase == "ended" for peer in alive)

    def _wait_for(self, phase: Phase, generation: int) -> None:
        """Wait until every other node is in ``phase`` of this generation. Raises :class:`RunEndedError`."""
        reported_at = time.monotonic()

        def arrived(status: NodeStatus | None) -> bool:
            return status is not None and (status.phase, status.generation) == (phase, generation)

        nodes = range(1, self._heartbeats.nodes.count)
        while missing := [node for node in nodes if not arrived(self._heartbeats.status_of(node))]:
            if (halt := self._halted()) is not None:
                raise RunEndedError(halt)
            self.check_fatal()
            if lost := self._heartbeats.silent(self._timeout_s):
                names = ", ".join(f"node {node}" for node in lost)
                message = f"{names} has sent no heartbeat for {self._timeout_s:g} s"
                hint = resume_hint(self._attempt.name)
                raise RunEndedError(ExitOutcome("failed", message, hint, ExitCode.JOB_FAILED))
            if time.monotonic() - reported_at > REPORT_S:
                reported_at = time.monotonic()
                self._attempt.recorder.log(f"waiting for nodes {missing} to be {phase}")
            if self._heartbeats.error is not None and self._heartbeats.unread_s() > self._timeout_s:
                raise self._heartbeats.error
            time.sleep(POLL_S)
