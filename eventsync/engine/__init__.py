"""A store and its accessors: decide, write, capture, apply, synchronize."""
