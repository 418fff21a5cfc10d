"""The decoder against references, whole and served in chunks: what is compared, and how far apart they are.

`PYTHONPATH=tests python -m parity` prints the table.
"""
