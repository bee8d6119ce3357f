"""The transports: how the bus reaches each kind of broker."""
