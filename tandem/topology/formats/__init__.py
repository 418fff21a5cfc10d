"""The files that describe a service, ours and other people's, and the way from one to another."""
