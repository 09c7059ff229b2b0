"""bafogpt: train a language model for a language the big labs skip, on machines you rent by the hour.

The packages and the machine that each runs on, from the top. No package imports one above it, and ``agent`` and
``launch`` never import each other (``tests/test_layers.py``).

=========== ================ ======================================================================
package     runs on          what it does
=========== ================ ======================================================================
``cli``     your machine     the ``bafogpt`` command: options in, output and errors out
``launch``  your machine     plans, prices and launches; runs a job locally or through SkyPilot
``agent``   rented machine   checks the machine, supervises the trainers, uploads logs, enforces limits
``reports`` your machine     summaries, reports and model cards from the records in the bucket
``jobs``    both             job and task files
``runs``    both             the records of a run in the bucket
``train``   rented machine   the training loop; memory and speed estimates
``serve``   your machine     a model over HTTP
``model``   both             Gemma networks, LoRA, generation, model folders
``data``    your machine     text to token shards; tokenizers
``folders`` both             folders of models on disk, in buckets and on the Hub: copied, listed, verified
``storage`` both             buckets, the local S3 server, token streams, checkpoints
``core``    both             errors, strict configuration, settings, files
=========== ================ ======================================================================
"""

__version__ = "0.1.0"
