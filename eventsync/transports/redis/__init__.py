"""Queues in Redis Streams."""
