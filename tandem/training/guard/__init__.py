"""What is done when training goes wrong: wild losses, no numbers, ranks that hang."""
