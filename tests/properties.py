"""How the tests of properties run: the same examples every time, few enough for every run of the tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

FEW = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SOME = settings(FEW, max_examples=60)
MANY = settings(FEW, max_examples=100)
