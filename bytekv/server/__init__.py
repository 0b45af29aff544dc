"""What every server of a store shares: sockets, start and stop."""
