"""What a model is, without training: the network and its loss; its weights on disk, in and out.

- ``config``       litgpt's configuration by name, with a job's overrides and a dataset's vocabulary
- ``gpt``          the network: litgpt's, by litgpt's names of its parameters, with the three below
- ``attention``    causal attention with soft-cap, sliding window, documents and a cache; who sees whom
- ``cache``        the keys and values of the tokens that went before, for generation
- ``loss``         output head, soft-cap and cross-entropy in one, without all logits at once
- ``generate``     tokens after a prompt, and the text they make; ``chat_model``: a model folder that talks
- ``weights``      a tensor that is read by rows, when and as far as it is wanted
- ``tensorfiles``  safetensors files: read in place, written one block of rows at a time
- ``names``        Hugging Face's parameter names and litgpt's, and the shapes that a configuration asks for
- ``families``     the families that can be read and written (Gemma-2, Gemma-3, Qwen-3): one table each
- ``hfconfig``     ``config.json`` and litgpt's ``Config``
- ``folder``       a model folder: opened, checked, loaded into a network, written
- ``checkpoint``   the model in a training checkpoint
- ``pull``         a published model fetched: what belongs to it, verified
- ``runs``         a run's newest checkpoint and the tokenizer of its data
- ``finetuned``    a run's adapter, its base, and both as one model
- ``export``       either of them in Hugging Face's layout or litgpt's
- ``merge``        an adapter made part of its base, and held against the two apart
- ``samples``      a little text in a model's tokenizer: its loss, and what two models are compared on
- ``expand``       rows for the pieces of a continued tokenizer
- ``adapter``      LoRA's settings, and how PEFT names and describes an adapter; imports no torch
- ``lora``         pairs on a network; an adapter as a folder that ``peft`` reads
- ``nf4``          frozen matrices in 4 bits, on CPU and GPU alike
"""
