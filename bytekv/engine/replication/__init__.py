"""Replication: readers beside a writer, the change feed, backups."""
