"""What a series of losses or gradient norms means: trend, spread, spikes, no numbers. NumPy only."""
