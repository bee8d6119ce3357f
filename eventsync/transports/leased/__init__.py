"""The leased-queue channel, which the Redis and SQLite transports share."""
