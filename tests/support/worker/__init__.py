"""What tests of `pisync-receiver worker` stand on: PostgreSQL, RabbitMQ, a webhook and a mail server, all real."""
