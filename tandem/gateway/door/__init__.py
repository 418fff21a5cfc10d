"""Who is let in to ask at all: connections of clients, and their keys."""
