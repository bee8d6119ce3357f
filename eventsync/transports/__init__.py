"""The transports: connect the bus to the different kinds of brokers."""
