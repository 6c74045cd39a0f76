import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest

from allmrec_hf.errors import ALLMRecError, DataError
from allmrec_hf.evaluation.significance import (
    average_over_seeds,
    bootstrap_means,
    check_same_users,
    deviation,
    difference_interval,
    holm,
    mcnemar,
    mean_interval,
    randomisation_test,
    sign_flip_tests,
)


def test_interval_of_equal_values_has_no_width():
    interval = mean_interval(np.full(50, 0.25))
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_interval_has_the_width_of_the_normal_approximation():
    hits = np.tile([0.0, 1.0], 500)
    interval = mean_interval(hits, num_resamples=4000)
    # 0.5 +- 1.96 sqrt(0.25 / 1000); the percentiles of 4,000 draws of a lattice of 1/1000 are off by under 0.003
    assert interval.low == pytest.approx(0.469, abs=0.003)
    assert interval.high == pytest.approx(0.531, abs=0.003)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    samples = generator.random((300, 100)) < 0.3
    covered = [
        interval.low <= 0.3 <= interval.high
        for number, sample in enumerate(samples)
        for interval in [mean_interval(sample, num_resamples=300, seed=number)]
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.04)  # 300 trials: a deviation of 0.013


def test_difference_is_paired_not_the_difference_of_two_intervals():
    generator = np.random.default_rng(0)
    first = generator.random(200)
    interval = difference_interval(first + 0.01, first)
    assert interval.low == pytest.approx(0.01)
    assert interval.high == pytest.approx(0.01)
    assert interval.excludes_zero


def test_chunks_do_not_change_the_draws(monkeypatch):
    values = np.random.default_rng(0).random((40, 3))
    whole, flips = bootstrap_means(values, 50), sign_flip_tests(values - 0.5, 64)
    monkeypatch.setattr("allmrec_hf.evaluation.significance._CHUNK_NUMBERS", 7 * 40)
    np.testing.assert_allclose(bootstrap_means(values, 50), whole, atol=1e-12)
    assert sign_flip_tests(values - 0.5, 64).shape == flips.shape


def test_columns_share_the_draws():
    values = np.random.default_rng(1).random(30)
    means = bootstrap_means(np.stack([values, values + 1], axis=1), 20)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0)


def test_randomisation_is_exact_for_few_users():
    # differences 1, 2, 2: only all plus and all minus reach |sum| 5, of 8 patterns
    assert randomisation_test([1, 2, 3], [0, 0, 1]) == pytest.approx(2 / 8)
    # 3, 2, -1: |sum| 6 and 4, each with its mirror
    assert randomisation_test([3, 2, -1], [0, 0, 0]) == pytest.approx(4 / 8)
    # users without a difference change nothing
    assert randomisation_test([3, 2, -1, *[7] * 50], [0, 0, 0, *[7] * 50]) == pytest.approx(4 / 8)


def test_randomisation_of_hits_equals_mcnemar_where_both_are_exact():
    first, second = [1] * 8 + [0, 0, 1], [0] * 8 + [1, 1, 1]
    assert randomisation_test(first, second) == pytest.approx(mcnemar(first, second))


def test_randomisation_of_equal_methods_gives_one():
    values = np.random.default_rng(0).random(100)
    assert randomisation_test(values, values) == 1.0


def test_randomisation_of_equally_good_methods_is_rarely_significant():
    generator = np.random.default_rng(0)
    p_values = sign_flip_tests(generator.normal(size=(100, 400)), 999)
    assert (p_values < 0.05).mean() == pytest.approx(0.05, abs=0.04)
    assert np.median(p_values) == pytest.approx(0.5, abs=0.1)


def test_randomisation_of_clearly_different_methods_gives_the_smallest_p_it_can():
    first = np.random.default_rng(0).random(200)
    assert randomisation_test(first, first - 0.3, num_sign_flips=999) == pytest.approx(1 / 1000)


def test_randomisation_is_two_sided():
    first, second = np.random.default_rng(0).random((2, 60))
    assert randomisation_test(first, second) == randomisation_test(second, first)


def test_mcnemar_agrees_with_a_binomial_test_of_the_discordant_users():
    generator = np.random.default_rng(0)
    first, second = generator.random((2, 300)) < [[0.5], [0.4]]
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    assert mcnemar(first, second) == pytest.approx(binomtest(wins, wins + losses).pvalue)


def test_mcnemar_of_the_same_hits_gives_one():
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1.0
    assert mcnemar([1, 0], [0, 1]) == 1.0


def test_mcnemar_refuses_values_that_are_no_hits():
    with pytest.raises(ALLMRecError, match="0 or 1"):
        mcnemar([0.5, 1.0], [0.0, 1.0])


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and no smaller than the one before: .02 .03 .06 .06
    assert holm([0.04, 0.01, 0.03, 0.005]).tolist() == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    with pytest.raises(ALLMRecError, match="between 0 and 1"):
        holm([0.1, 1.2])


def test_seeds_are_averaged_by_user_and_their_spread_is_the_sample_deviation():
    values, means = average_over_seeds([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert values.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert means == [0.5, 1.0, 0.0]
    assert deviation(means) == pytest.approx(0.5)
    assert deviation([0.5]) is None


def test_unpaired_and_empty_and_broken_values_are_refused():
    with pytest.raises(ALLMRecError, match="got 3 and 2 users"):
        difference_interval([1, 2, 3], [1, 2])
    with pytest.raises(ALLMRecError, match="no users"):
        mean_interval([])
    with pytest.raises(ALLMRecError, match="1 of 2 per-user values are not finite"):
        mean_interval([np.inf, 1.0])
    with pytest.raises(ALLMRecError, match=r"got \[2, 3\] users"):
        average_over_seeds([[1, 2], [1, 2, 3]])
    with pytest.raises(ALLMRecError, match="confidence"):
        mean_interval([1.0, 2.0], confidence=95)


def test_other_users_are_refused_with_counts():
    first = pl.DataFrame({"user_id": ["a", "b", "c"], "target": ["x", "y", "z"]})
    check_same_users(first, first.clone(), ("A", "B"), ["user_id", "target"])
    with pytest.raises(DataError, match="A has 3 users, B 2, 2 are in both"):
        check_same_users(first, first.head(2), ("A", "B"), ["user_id", "target"])
    with pytest.raises(DataError, match="3 are in both, but user_id, target differ or stand in another order"):
        check_same_users(first, first.reverse(), ("A", "B"), ["user_id", "target"])
