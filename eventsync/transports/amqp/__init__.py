"""The RabbitMQ transport: quorum queues and pipelined publisher confirms."""
