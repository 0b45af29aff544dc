"""The index: keys to locations, in memory. Knows no files."""
