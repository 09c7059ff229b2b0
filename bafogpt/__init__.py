"""bafogpt: train a language model for a language the big labs skip, on machines you rent by the hour.

The floors, from the top; a lower floor never imports an upper one (``tests/test_layers.py`` checks it):

========== =====================================================================================
``cli``     the ``bafogpt`` command: options in, one output sink, one table of errors. Thin.
``cloud``   a job becomes a plan, an engine runs it somewhere, the supervisor keeps it alive,
            the run's records stay in the bucket.
``agent``   what runs on the rented machine: its checks, the trainer processes.
``train``   the model, the loop, the state that makes a resumed run equal to one never stopped.
``data``    text in, token shards out, in curriculum order or shuffled.
``storage`` buckets, the embedded S3 server, the token stream, checkpoints with the manifest last.
``core``    errors, strict configuration, settings, files: what every floor needs.
========== =====================================================================================
"""

__version__ = "0.1.0"
