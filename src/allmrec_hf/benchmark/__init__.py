"""The laboratory: suites of data, scenarios and methods, cells that survive a kill, and the report made of them."""
