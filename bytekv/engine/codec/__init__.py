"""The codec: every byte on disk, packed and checked. No I/O."""
