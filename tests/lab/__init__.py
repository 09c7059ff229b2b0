"""The labs: two clouds on one machine that the real SkyPilot rents from, without an account and without a cent.

- ``slurm``      a Slurm cluster of three nodes with plain files as GPUs, behind an sshd on loopback
- ``pods``       a RunPod-compatible API on loopback whose pods are containers of the project's own image;
  ``podcloud``   is that API: ``graphql`` its language, ``machines`` the containers, ``cloud`` what it rents, ``server``
- ``config``      where a lab lives, its ports and its environment; ``packages`` what it installs
- ``skyhome``    a HOME for SkyPilot: configuration, credentials, prices, ssh
- ``processes``  who belongs to a lab, and how all of them are ended
- ``catalog``    a few rows of prices in SkyPilot's columns; ``plugin`` what the API server needs without internet

``scripts/lab start|stop|status|env slurm|pods`` is the front for people, the fixtures ``slurm_lab`` and ``pods_lab``
of ``conftest`` are the front for tests. Everything here but the tests runs on the standard library.
"""
