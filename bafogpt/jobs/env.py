"""Environment variables through which a launch configures the job on its machine, each name once.

Those of the bucket are read as settings too (:mod:`bafogpt.core.settings`).
"""

from __future__ import annotations

BUCKET = "BAFOGPT_BUCKET"
S3_ENDPOINT = "BAFOGPT_S3_ENDPOINT"
S3_REGION = "BAFOGPT_S3_REGION"
HOME = "BAFOGPT_HOME"
INFRA = "BAFOGPT_INFRA"
"""Where it was launched, as ``--infra`` has it."""
GPUS = "BAFOGPT_GPUS"
"""The requested GPUs of each machine, ``L40:4``."""
GIT = "BAFOGPT_GIT"
"""The code: ``COMMIT`` or ``COMMIT+dirty.DIGEST``."""
IMAGE = "BAFOGPT_IMAGE"
"""The container image, as SkyPilot's ``image_id`` has it."""
GRACE_S = "BAFOGPT_GRACE_S"
"""Seconds from SIGTERM until trainers are killed."""
PRICE_PER_HOUR = "BAFOGPT_PRICE_PER_HOUR"
"""Dollars, for all machines."""
MAX_COST = "BAFOGPT_MAX_COST"
"""Dollars that the run may cost."""
MAX_HOURS = "BAFOGPT_MAX_HOURS"
