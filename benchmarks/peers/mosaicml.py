"""mosaicml-streaming without its image datasets.

It imports torchvision for them, whatever is read; and torchvision's compiled part fits only the torch build of the
same origin, which a machine without a GPU often does not have. Nothing that a benchmark measures uses it.
"""

from __future__ import annotations

import sys
from types import ModuleType


def without_vision() -> None:
    """Put an empty module in the place of ``streaming.vision``; to be called before ``streaming`` is imported."""
    module = ModuleType("streaming.vision")
    for name in ("StreamingADE20K", "StreamingCIFAR10", "StreamingCOCO", "StreamingImageNet"):
        setattr(module, name, None)
    sys.modules["streaming.vision"] = module
