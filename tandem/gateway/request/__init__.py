"""What a client asks for, what it may ask for, and what it has been given of it."""
