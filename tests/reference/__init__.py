"""Reference implementations in float64 NumPy, written from the formulas of each family and from nothing of tandem."""
