"""Makes tokenizers: extends a base model's for another language, or trains a new one; and compares them.

- ``word_counts``  the distinct words of a corpus, and the runs of base tokens within which pieces are learned
- ``bpe_merges``   byte-pair merges, learned incrementally
- ``protected_merges`` the merges that would change text of the protected language
- ``extend``       continued BPE over the base's tokens
- ``files``        reads and writes ``tokenizer.json`` and ``tokenizer.lineage.json``
- ``sentencepiece_model`` writes ``tokenizer.model`` for llama.cpp's converter
- ``train``        a new tokenizer
- ``report``       compares tokenizers on the same text
- ``plot``         draws that comparison
"""
