"""The bench for GPU machines runs here with a tiny model, so that it works when somebody rents one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_gpu_bench_measures_each_micro_batch_and_labels_its_projection(tmp_path: Path):
    out = tmp_path / "rows.json"
    words = [sys.executable, "benchmarks/gpu.py", "--dry-run", "--micro", "1,2", "--json", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert [row["micro"] for row in rows] == [1, 2]
    assert all(row["tokens_per_s"] > 0 and row["mfu"] > 0 for row in rows), rows
    assert "projected for L40:4, not measured" in done.stdout
