"""The local store: one directory of segments and an index in memory."""
