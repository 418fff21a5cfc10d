"""Paged blocks of keys and values, leases on them, and their transfer between instances."""
