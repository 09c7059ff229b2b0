"""The ``bafogpt`` command line. Thin: options in, a call of a lower package, one place for output and errors.

- ``main``      the list of sub-commands and the entry point
- ``console``   what all commands share
    - ``app``          Typer apps whose commands take groups of options
    - ``options``      option and argument types and groups, each defined once
    - ``output``       text for people, JSON for programs, ids for scripts; ``progress`` for long steps
    - ``log_progress`` a run's log on a terminal, with a progress bar below it
    - ``access``       the runs of a bucket, the engine of a run
    - ``errors``       every exception becomes two lines (what is wrong, what to type next) and an exit code
- ``gen_docs``  writes ``docs/cli.md``

Each other module holds one sub-command (its ``app``), or commands of ``cloud`` (``cost``, ``doctor``, ``monitor``,
``remote``) or ``model`` (``publish``). It is imported when it is called, and imports lower packages only inside its
functions, so that ``--help``, shell completion and a mistyped word take no time.
"""
