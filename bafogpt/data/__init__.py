"""Turns text into datasets of token shards.

- ``documents``  reads documents from one file; errors name file and line
- ``sources``    finds text files: local, in a bucket or on the web
- ``starter``    the corpus that ships with the project
- ``tokenizer``  a ``tokenizer.json``, or the built-in byte tokenizer
- ``curriculum`` the order of the stages, validation, English replay
- ``token_cache`` tokenised documents on a local disk, so that a corpus need not fit in memory
- ``prepare``    text sources to a dataset for pretraining
- ``messages``   conversations, checked
- ``prompts``    prompt styles: Alpaca, a model's chat template, plain
- ``instruction_mix`` which languages ask and answer, and which records are held out
- ``packing``    packs conversations into samples
- ``instructions``  instruction files to a dataset for fine-tuning
"""
