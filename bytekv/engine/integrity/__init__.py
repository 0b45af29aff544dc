"""Integrity: proving that a store is sound, and recovering what a damaged one still holds."""
