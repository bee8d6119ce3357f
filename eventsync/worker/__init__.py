"""The worker process: loop, settlement, maintenance, retries, supervision."""
