"""Text in, token shards out, in curriculum order.

- ``documents``  one file of text as documents, and what is wrong with it by file and line
- ``sources``    where text lies: files and folders, local or in a bucket
- ``starter``    the corpus that ships with the project, as such files
- ``tokenizer``  a ``tokenizer.json``, or the built-in bytes
- ``messages``   conversations, and what is wrong with one that comes from a file
- ``prompts``    how a conversation becomes tokens: Alpaca, a model's own chat template, plain
- ``mixing``     which questions meet which answers, and which of them are held out
- ``packing``    conversations into samples, so that none crosses a sample's border
- ``instructions``  all of that together: instruction files to a dataset
- ``spill``      tokenised documents on a local disk, one file a stage, so that a corpus need not fit in memory
- ``curriculum`` the order of the stages, what is held out, how English replay is mixed in
- ``prepare``    all of it together: sources to a dataset whose manifest is written last
"""
