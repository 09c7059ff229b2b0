"""Several nodes of one run: node 0 decides, the others follow, and they agree through objects in the bucket."""
