"""Studies: many runs as cells of a grid, and their figures in one table."""
