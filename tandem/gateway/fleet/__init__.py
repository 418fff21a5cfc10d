"""Workers that come and go while the gateway runs."""
