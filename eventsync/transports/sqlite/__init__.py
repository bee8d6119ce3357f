"""The embedded broker: queues in one SQLite file."""
