"""A model over HTTP, for OpenAI's clients.

- ``requests``   checks requests, and formats errors as OpenAI's libraries read them
- ``engine``     slots, a bounded queue, and threads that stop when the client hangs up
- ``app``        the routes: ``/v1/chat/completions``, ``/v1/models``, ``/health``
- ``server``     the listening socket and the server's settings
"""
