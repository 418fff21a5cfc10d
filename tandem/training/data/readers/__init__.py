"""Data files to rows, a block at a time, so that no file has to fit into memory."""
