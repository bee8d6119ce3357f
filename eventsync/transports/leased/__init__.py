"""The leased-queue channel that the Redis and SQLite transports share."""
