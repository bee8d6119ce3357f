"""The wire formats: envelopes, batches, signatures, CloudEvents, Debezium, dead letters."""
