"""The base of the Redis and SQLite transports: a kombu channel whose queues lease messages."""
