"""Who gets in: room for a request's keys and values, or a place in the queue."""
