"""Real instances in the mocks' place: each behind a front that does to its connections what a mock does to its own."""
