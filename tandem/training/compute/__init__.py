"""What a step computes: losses, updates, and how ranks share them."""
