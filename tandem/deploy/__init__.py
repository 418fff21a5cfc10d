"""Turns a Topology into running processes, watches them and stops them. No torch."""
