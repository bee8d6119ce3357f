"""The Redis transport: keeps queues in Redis Streams."""
