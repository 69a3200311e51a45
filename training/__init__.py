"""Training of a pair: data, tokenizer, cross-entropy fitting, behaviour cloning and their measurements.

One file is one idea; every file that does something is also a command: `python -m kdtw_fast.training.fit --help`.
"""
