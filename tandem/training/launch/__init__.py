"""The ranks of a run as processes: started, watched, and ended together."""
