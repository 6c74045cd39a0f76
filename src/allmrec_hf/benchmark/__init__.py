"""Benchmark: suites of data, scenarios and methods, benchmark runs that resume after a kill, and their report."""
