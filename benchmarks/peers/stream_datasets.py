"""Write the peers' copies of the benchmark's tokens, each in the peer's own format.

python stream_datasets.py litdata|mds FOLDER TOKENS.npy LENGTH
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_BYTES = 64 << 20


def piece(job: tuple[str, int, int]) -> Any:
    """One run of tokens, as litdata's workers want it."""
    import torch

    path, start, end = job
    return torch.from_numpy(np.load(path, mmap_mode="r")[start:end].astype(np.int32))


def write_litdata(folder: Path, tokens: Path, length: int) -> None:
    import litdata

    total, step = len(np.load(tokens, mmap_mode="r")), (CHUNK_BYTES // 16) // (length + 1) * (length + 1)
    litdata.optimize(
        fn=piece,
        inputs=[(str(tokens), start, min(start + step, total)) for start in range(0, total, step)],
        output_dir=str(folder),
        num_workers=1,
        chunk_size=step * 4,  # tokens
        item_loader=litdata.TokensLoader(block_size=length + 1),
        reorder_files=False,
        keep_data_ordered=True,
        verbose=False,
    )


def write_mds(folder: Path, tokens: Path, length: int) -> None:
    import mosaicml

    mosaicml.without_vision()
    from streaming import MDSWriter

    array = np.load(tokens, mmap_mode="r")
    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint32:{length}"}, size_limit=CHUNK_BYTES) as out:
        for start in range(0, len(array) - length + 1, length):
            out.write({"tokens": np.asarray(array[start : start + length])})


if __name__ == "__main__":
    write = {"litdata": write_litdata, "mds": write_mds}[sys.argv[1]]
    write(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
