"""A plugin of SkyPilot's API server: it looks for the network at the server's own address, not at public ones.

SkyPilot refuses to refresh a cluster or to recover a job while it cannot reach one of two public name servers. A lab is
on loopback, and its tests run where there is no internet.
"""

from __future__ import annotations

import os
from typing import Any

from sky.server import plugins


class Loopback(plugins.BasePlugin):
    """Named in the lab's ``~/.sky/plugins.yaml``, found through PYTHONPATH."""

    @classmethod
    def should_load(cls, context: Any) -> bool:
        """In every process of the server: controllers probe too."""
        return True

    def install(self, extension_context: Any) -> None:
        """Replace the probed addresses."""
        from sky.backends import backend_utils

        port = os.environ["SKYPILOT_API_SERVER_LOCAL_PORT"]
        backend_utils._TEST_IP_LIST[:] = [f"http://127.0.0.1:{port}/api/health"]
