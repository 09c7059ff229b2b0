"""Models without training: the network and its loss, generation, and model files.

- ``config``       litgpt's configuration by name, with a job's overrides and a dataset's vocabulary
- ``gpt``          the network: litgpt's, with litgpt's parameter names and our attention, cache and loss
- ``attention``    causal attention: soft-cap, sliding window, packed documents; ``flex`` on a GPU
- ``cache``        the key-value cache
- ``loss``         fused output head, soft-cap and cross-entropy in chunks (``loss_chunks``)
- ``generate``     samples tokens after a prompt
- ``chat_model``   a model folder for chat: tokenizer, prompt style, streamed answers
- ``formats``      model folders, checkpoints and their tensors; families Gemma-2, Gemma-3, Qwen-3
- ``pull``         fetches a published model, verified
- ``runs``         a run's newest checkpoint and the tokenizer of its data
- ``export``       writes a checkpoint or folder in Hugging Face's or litgpt's layout
- ``resize_embeddings`` adds rows for the pieces of an extended tokenizer
- ``adapter``      LoRA's settings, and PEFT's format; imports no torch
- ``lora``         LoRA pairs on a network; adapters as folders for ``peft``
- ``nf4``          frozen matrices in 4 bits
- ``merge``        merges an adapter into its base and compares both
- ``adapter_export`` a run's adapter, or its merge with the base
- ``eval_samples`` text samples to measure a model's loss and compare models
"""
