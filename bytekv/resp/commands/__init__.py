"""The Redis commands: a table, and the functions that carry them out."""
