"""Evaluation: rankers side by side on the same users, targets and candidates, by warmth of the target.

`evaluator.evaluate` runs it, `rankers` holds the methods that need no LLM, `warmth` the groups, `report` the tables.
"""
