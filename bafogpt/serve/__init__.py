"""A model over HTTP, as OpenAI's clients know it.

- ``requests``   what a client may ask for, checked; errors in the form that its library understands
- ``engine``     who may compute: slots, a bounded queue, threads that end when the client is gone
- ``app``        the routes: ``/v1/chat/completions``, ``/v1/models``, ``/health``
- ``run``        the listening socket and the server's settings
"""
