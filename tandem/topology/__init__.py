"""The typed Topology, and codecs for the files that describe one. No torch."""
