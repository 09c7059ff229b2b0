"""A pod cloud on loopback: as much of RunPod's API as SkyPilot and the runpod SDK ask for, and faults on request.

- ``graphql``   the language of the API: parsing a document, answering exactly what it selects
- ``machines``  pods as podman containers, and the doors between a pod's loopback and this machine's
- ``cloud``     what is rented, at what price, to whom it is lost; all state of a pod is in its container's labels
- ``faults``    which request fails how
- ``server``    HTTP: ``/graphql`` as RunPod serves it, ``/_control`` for tests

Written from RunPod's public GraphQL reference and from what SkyPilot 0.14.1 sends. It is strict: an operation or field
that it does not know is an error, not a guess. What it does not show of the real one: bids of others, stock, slow
pulls of images, network volumes.
"""
