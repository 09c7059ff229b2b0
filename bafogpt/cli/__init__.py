"""The ``bafogpt`` command: options in, one output sink, one table of errors. Thin.

- ``main``     the root: which sub-commands there are, ``--version``, ``--debug``; the entry point
- ``output``   the one sink: text for people, JSON for programs, ids for scripts
- ``progress`` how far a long step is: a bar on a terminal, a line now and then elsewhere
- ``live``     a run's lines on a terminal, with a bar under them
- ``options``  option and argument types, each defined once
- ``failures`` every exception becomes two lines (what is wrong, what to type next) and an exit code
- ``config``   ``bafogpt config``: the settings in force and who said so
- ``publish``  ``bafogpt model publish``
- ``watching`` ``bafogpt cloud top`` and ``bafogpt cloud tensorboard``

Each other module is one sub-command (``cloud``, ``job``, ``runs``, ``data``, ``storage``, ``image``) and has an
``app``. It is imported only when it is called, and imports the lower floors only inside its functions, so that
``--help``, shell completion and a mistyped word answer at once.
"""
