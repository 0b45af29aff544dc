"""Sharing: several processes write to one store, by turns."""
