"""Other task queues, each measured by a small adapter in an environment of its own."""
