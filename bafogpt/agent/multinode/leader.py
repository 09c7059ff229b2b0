"""Node 0's side of a run with more nodes than one: brings the others to the same point, and sees when one is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from bafogpt.agent.multinode.heartbeat import Heartbeats, Status
from bafogpt.agent.outcome import Ending
from bafogpt.agent.workers import Layout, free_port
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
        crew: Heartbeats,
        *,
        attempt: int,
        storage_timeout_s: float,
        silent_s: float,
        halted: Callable[[], Ending | None],
        say: Callable[[str], None],
    ) -> None:
        self._crew = crew
        self._attempt = attempt
        self._patience_s = storage_timeout_s
        self._silent_s = silent_s
        self._halted = halted
        self._say = say
        self._who: dict[int, str] = {}

    def start(self) -> None:
        self._crew.start()

    def gather(self, generation: int, *, hung: bool) -> Ending | None:
        """Until no node has a trainer, and all that they saved is in the bucket."""
        self._crew.tell(phase="gathering", generation=generation, hung=hung)
        ending = self._wait_for("settled", generation)
        if ending is None:
            mine = self._crew.status.processes
            for other in self._crew.others():
                if other.processes != mine:
                    message = f"node {other.node} has {other.processes} trainers, node 0 has {mine}"
                    hint = f"--set supervisor.processes={min(mine, other.processes)}"
                    return Ending("failed", message, hint, ExitCode.JOB_FAILED)
        return ending

    def prepare(self, generation: int, resume_step: int | None) -> Ending | None:
        """Until all nodes have the checkpoint to go on from."""
        self._crew.tell(phase="preparing", generation=generation, resume_step=resume_step)
        return self._wait_for("ready", generation)

    def layout(self, generation: int) -> Layout:
        """Where node 0's trainers stand in a generation, and their port, which is free."""
        nodes = self._crew.nodes
        launch = f"{self._attempt:04d}-{generation:04d}"
        address = nodes.addresses[0]
        return Layout(nodes=nodes.count, address=address, own=address, port=free_port(), launch=launch)

    def go(self, generation: int, layout: Layout) -> None:
        """All start their trainers."""
        others = self._crew.others()
        self._who = {other.node: other.who for other in others}
        status = self._crew.status
        with contextlib.suppress(StorageError):
            self._crew.record(
                generation,
                resume_step=status.resume_step,
                port=layout.port,
                processes=[each.processes for each in (status, *others)],
            )
        self._crew.tell(phase="running", generation=generation, port=layout.port)

    def trouble(self, generation: int) -> str | None:
        """Why the trainers of a generation cannot go on, seen from the other nodes; None while they can."""
        for other in self._crew.others():
            if other.who != self._who.get(other.node):
                return f"node {other.node} was started anew"
            if other.phase == "died" and other.generation == generation:
                return f"node {other.node}: {other.why}"
        for node in self._crew.silent(self._silent_s):
            return f"node {node} has not been heard of for {self._silent_s:g} s"
        return None

    def fatal(self) -> Ending | None:
        """The end of the run, where another node knows that no restart can help."""
        for other in self._crew.others():
            if other.fatal:
                return Ending("failed", f"node {other.node}: {other.why}", other.hint, ExitCode(other.fatal))
        return None

    def stopping(self) -> list[int]:
        """The other nodes that were asked to stop."""
        return [other.node for other in self._crew.others() if other.stopping]

    def committed(self, step: int) -> None:
        """A checkpoint is in the bucket; nobody needs it on local disk."""
        self._crew.tell(committed=step)

    def end(self, ending: Ending) -> None:
        """Tell the others that the run has ended, and wait a little until they have heard it."""
        self._crew.tell(
            phase="ended",
            state=ending.state,
            message=ending.message,
            hint=ending.hint,
            exit_code=int(ending.exit_code),
        )
        process.wait_until(self._all_have_gone, GOODBYE_S)
        self._crew.close()

    def _all_have_gone(self) -> bool:
        there = [other for other in self._crew.others() if self._crew.silent_s(other.node) < GOODBYE_S]
        return self._crew.error is not None or all(other.phase == "ended" for other in there)

    def _wait_for(self, phase: str, generation: int) -> Ending | None:
        """Until every other node has said ``phase`` of this generation. An ending where that cannot be."""
        told = time.monotonic()

        def arrived(status: Status | None) -> bool:
            return status is not None and (status.phase, status.generation) == (phase, generation)

        others = range(1, self._crew.nodes.count)
        while not all(arrived(self._crew.hear(node)) for node in others):
            if (ending := self._halted() or self.fatal()) is not None:
                return ending
            lost = self._crew.silent(self._patience_s)
            if lost:
                names = ", ".join(f"node {node}" for node in lost)
                return Ending(
                    "failed",
                    f"{names} has not been heard of for {self._patience_s:g} s",
                    "bafogpt cloud launch … --resume",
                    ExitCode.JOB_FAILED,
                )
            if time.monotonic() - told > 30:
                told = time.monotonic()
                missing = [node for node in others if not arrived(self._crew.hear(node))]
                self._say(f"waiting for nodes {missing} to be {phase}")
            if isinstance(self._crew.error, StorageError) and self._crew.deaf_s() > self._patience_s:
                raise self._crew.error
            time.sleep(POLL_S)
        return None
