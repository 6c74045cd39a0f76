"""Recommend for millions of users: a table in, a table out, in parts that survive a kill."""
