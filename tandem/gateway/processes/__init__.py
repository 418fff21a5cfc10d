"""What the processes of one gateway share, and what they tell each other."""
