"""What the gateway tells of itself: metrics, the access log, traces."""
