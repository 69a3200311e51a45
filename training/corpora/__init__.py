"""German–English technical text that Debian's binary packages carry in both languages, as a corpus for training.

`python -m kdtw_fast.training.corpora` builds it: packages.py fetches, manpages.py, markup.py and catalogues.py read,
alignment.py pairs and filters, splits.py divides; sources.py says what comes from where.
"""
