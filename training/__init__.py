"""Training of a pair: data, tokenizer, recipes and the algorithms they run, and their measurements.

One file is one idea. `kdtw train --list` shows the recipes; debian, tokenizer, oracle and export are commands of their
own: `python -m kdtw_fast.training.debian --help`.
"""
