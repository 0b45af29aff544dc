"""The write path: from a change to an acknowledged, durable entry."""
