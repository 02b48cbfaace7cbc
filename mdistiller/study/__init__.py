"""Studies: grids of runs (methods × pairs × seeds), and the tables and plots that compare them."""
