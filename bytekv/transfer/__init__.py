"""Transfer: entries into a store and out of it, in formats of others."""
