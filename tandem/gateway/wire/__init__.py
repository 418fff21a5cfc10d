"""To the workers and back: connections, and what is asked over them."""
