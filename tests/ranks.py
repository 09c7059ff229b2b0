"""The processes of a run without torch: they exchange values, and the end of one is the end of all."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Client, Connection, Listener
from typing import Any


class Ranks:
    """All processes of the run, by torchrun's variables; they meet at MASTER_ADDR:MASTER_PORT."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._others: list[Connection[Any, Any]] = []
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if self.rank == 0 and self.count > 1:
            with Listener(address) as listener:
                accepted = [listener.accept() for _ in range(1, self.count)]
            self._others = [each for _, each in sorted(((each.recv(), each) for each in accepted), key=lambda p: p[0])]
        while self.rank > 0 and not self._others:
            try:
                self._others.append(Client(address))
                self._others[0].send(self.rank)
            except ConnectionRefusedError:
                time.sleep(0.01)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank; all wait for all."""
        if self.rank > 0:
            self._others[0].send(value)
            return list(self._others[0].recv())
        values = [value, *(each.recv() for each in self._others)]
        for each in self._others:
            each.send(values)
        return values
