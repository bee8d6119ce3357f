"""The wire format: codec, batches, signatures, CloudEvents, Debezium, dead letters."""
