"""Bytes that nobody meant, for every decoder: a target is a function of bytes that either returns or finds a bug.

`tests/model/test_fuzz.py` runs the targets on mutated golden stores in the default run;
``python -m tests.fuzz TARGET`` runs one with atheris (extra ``fuzz``), which watches which branches an input takes and
goes after new ones.
"""
