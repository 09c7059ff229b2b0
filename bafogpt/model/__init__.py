"""What a model is, without training: its weights on disk, in and out.

- ``weights``      a tensor that is read by rows, when and as far as it is wanted
- ``tensorfiles``  safetensors files: read in place, written one block of rows at a time
- ``names``        Hugging Face's parameter names and litgpt's, and the shapes that a configuration asks for
- ``hfconfig``     ``config.json`` and litgpt's ``Config``
- ``folder``       a model folder: opened, checked, loaded into a network, written
"""
