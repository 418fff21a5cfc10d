"""One native inference instance: admit, schedule, run, sample, stream; role prefill, decode or both."""
