"""Tokenizers made: the base model's continued for another language, or one from nothing, and what they are worth.

- ``words``    the distinct words of a corpus, and the runs of base tokens in them that pieces are learned within
- ``pairs``    byte-pair merges, learned incrementally
- ``protect``  which merges would touch the text of the protected language
- ``extend``   all of it together: continued BPE over the base's own segmentation
- ``files``    ``tokenizer.json`` in and out, and ``tokenizer.lineage.json`` beside it
- ``sentencepiece_model`` ``tokenizer.model`` for llama.cpp's converter, written where it gives the same ids
- ``train``    a tokenizer from nothing
- ``report``   tokens a word, pieces that cannot appear, sentences changed: of any tokenizers, side by side
- ``picture``  the same as a figure
"""
