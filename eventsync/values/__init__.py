"""Values that a record may carry, and their msgpack and JSON encodings."""
