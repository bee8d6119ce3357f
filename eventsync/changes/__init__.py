"""Changes of records: the hybrid logical clock, the change, the last-write-wins merge."""
