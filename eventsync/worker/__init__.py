"""The worker process: its loop, settlement, maintenance, retries and supervision."""
