"""The log: segments, the files they lie in, the manifest that lists them. Knows no keys."""
