"""Several nodes of one run: node 0 (``leader``) decides, the others (``follower``) follow, by way of ``heartbeat``."""
