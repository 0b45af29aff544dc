"""The contract of a store: what it takes and gives, whatever keeps the bytes. Knows no file."""
