"""RabbitMQ: quorum queues and pipelined publisher confirms."""
