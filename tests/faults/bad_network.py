"""Checkpoints and streams through a proxy that does harm: what is found at the end is right, or it is not found.

One script is one seed: some checkpoints are sent, retried as the supervisor retries, fetched again, and a stream is
read, all through the proxy. Then the bucket is looked at without it.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bafogpt.core.errors import BafoError, CorruptError, StorageError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.tokens import manifest as manifests
from bafogpt.storage.tokens.stream import Samples, TokenStream, prefetch

from .bench import DATA, Bench
from .fault_script import Script
from .proxy import Proxy

T = TypeVar("T")
STEPS = 3
LARGE_EVERY = 12
"""Scripts: every so many one has a file that is sent in parts."""
LENGTH = 16
TRIES = 40


@dataclass
class NetworkTally:
    """What the scripts did, and the results."""

    scripts: int = 0
    found: int = 0
    """Scripts at whose end the newest checkpoint was found, whole."""
    manifests: int = 0
    unsound: int = 0
    """Manifests with a file that is not what they say."""
    samples: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """What was raised, and tried again, by kind."""
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class NetworkCampaign:
    """Runs scripts, one after another."""

    def __init__(self, bench: Bench) -> None:
        self._home = bench.home
        self._bucket = bench.bucket
        self._settings = replace(bench.settings, s3_timeout_s=3.0)
        self._endpoint = bench.endpoint
        data = bench.bucket.child(DATA)
        self._samples = Samples(TokenStream(data, manifests.load(data), "train"), LENGTH)
        self._reference = [np.array(self._samples[index]) for index in range(self._samples.count)]
        self.tally = NetworkTally()

    def run(self, count: int, seed: int, progress: Callable[[NetworkTally], None] = lambda _: None) -> NetworkTally:
        """``count`` scripts; it stops at the first that goes wrong."""
        for number in range(count):
            before = len(self.tally.problems)
            self._one(number, f"{seed} {number}")
            if len(self.tally.problems) > before:
                self.tally.problems.append(f"  that was script {number} of seed {seed}")
                break
            progress(self.tally)
        return self.tally

    def _one(self, number: int, seed: str) -> None:
        tally, chance = self.tally, random.Random(seed)
        tally.scripts += 1
        name = f"network-{seed.replace(' ', '-')}"
        home = self._home / name
        with Proxy(self._endpoint, decide=Script(chance.randrange(1 << 30), rate=chance.uniform(0.05, 0.35))) as proxy:
            through = Bucket.open(self._bucket.url, replace(self._settings, s3_endpoint=proxy.url))
            store = CheckpointStore(through.child(name))
            try:
                last = self._send_all(store, home, chance, large=number % LARGE_EVERY == 0)
                found = self._until_done(lambda: store.fetch_newest(home / "fetched"))
                right = found is not None and found[0].step == STEPS and _content(found[1]) == last
                self._read(through, number)
            except BafoError as error:
                tally.problems.append(f"{type(error).__name__}: {error.message}")
                return
            finally:
                tally.faults += proxy.faults
        direct = CheckpointStore(self._bucket.child(name))
        for checkpoint in direct.complete():
            tally.manifests += 1
            tally.unsound += bool(direct.problems(checkpoint))
            tally.problems += direct.problems(checkpoint)
        newest = direct.fetch_newest(home / "direct")
        right = right and newest is not None and newest[0].step == STEPS and _content(newest[1]) == last
        tally.found += right
        if not right:
            tally.problems.append(f"step {STEPS} was sent, found was {found and found[0].step}")
        shutil.rmtree(home)

    def _send_all(self, store: CheckpointStore, home: Path, chance: random.Random, large: bool) -> dict[str, bytes]:
        """Some steps' checkpoints, one of whose files never changes; the last one's files."""
        content: dict[str, bytes] = {}
        for step in range(1, STEPS + 1):
            folder = home / f"step-{step}"
            folder.mkdir(parents=True)
            content = {
                "same.bin": random.Random(0).randbytes(5000),
                "model.bin": chance.randbytes(11 << 20 if large and step == STEPS else chance.randrange(1, 200_000)),
                "checkpoint.json": b'{"step": %d}' % step,
            }
            for name, data in content.items():
                (folder / name).write_bytes(data)
            ids = iter(range(TRIES))

            def send(folder: Path = folder, step: int = step, ids: Any = ids) -> object:
                return store.upload(folder, step=step, samples=step, upload_id=f"try-{next(ids)}", metadata={})

            self._until_done(send)
            self._until_done(lambda: store.retain(last=2))
        return content

    def _read(self, bucket: Bucket, number: int) -> None:
        """Every sample, read ahead or not; right, or an error and read again."""
        data = bucket.child(DATA)
        samples = self._until_done(lambda: Samples(TokenStream(data, manifests.load(data), "train"), LENGTH))
        at = 0

        def read() -> None:
            nonlocal at
            rest = range(at, samples.count)
            rows = prefetch(samples, rest, depth=4) if number % 2 else ((index, samples[index]) for index in rest)
            for index, tokens in rows:
                self.tally.samples += 1
                if index != at or not np.array_equal(tokens, self._reference[index]):
                    self.tally.problems.append(f"sample {at} was not what was written")
                at += 1

        self._until_done(read)

    def _until_done(self, action: Callable[[], T]) -> T:
        """As the supervisor does: what the storage says may go away is tried again."""
        for _ in range(TRIES - 1):
            try:
                return action()
            except StorageError as error:
                self.tally.errors[type(error).__name__] += 1
        try:
            return action()
        except StorageError as error:
            raise CorruptError(f"after {TRIES} tries: {error.message}") from error


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
