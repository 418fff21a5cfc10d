"""What a run has on an object store: fetched before it, sent while it goes on."""
