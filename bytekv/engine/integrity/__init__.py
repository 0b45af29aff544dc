"""Integrity: prove that a store is sound, recover what a damaged one still holds."""
