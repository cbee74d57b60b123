"""Sinkhorn-Knopp against the textbook loop over a matrix, and its limits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skysense_core.losses.sinkhorn import sinkhorn


def textbook(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Rows are things, columns clusters; matrices in linear space and float64."""
    shares = np.exp(scores / epsilon)
    for _ in range(iterations):
        shares = shares / shares.sum(0, keepdims=True)
        shares = shares / shares.sum(1, keepdims=True)
    return shares


def one_group(scores: torch.Tensor, **settings: float) -> torch.Tensor:
    return sinkhorn(scores, torch.zeros(len(scores), dtype=torch.long), 1, **settings)


@given(seed=st.integers(0, 30), n=st.integers(1, 9), k=st.integers(1, 5), iterations=st.integers(1, 4))
def test_it_is_the_textbook_loop_in_every_group(seed: int, n: int, k: int, iterations: int) -> None:
    rng = np.random.default_rng(seed)
    scores, group = rng.uniform(-1, 1, (n, k)), rng.integers(0, 3, n)
    found = sinkhorn(torch.from_numpy(scores), torch.from_numpy(group), 3, iterations=iterations).numpy()
    for number in range(3):
        rows = group == number
        if rows.any():
            assert np.allclose(found[rows], textbook(scores[rows], 0.05, iterations), atol=1e-5)


def test_rows_sum_to_one_and_clusters_become_equally_full() -> None:
    torch.manual_seed(0)
    scores = torch.rand(40, 8)
    shares = one_group(scores, iterations=100)
    assert torch.allclose(shares.sum(1), torch.ones(40), atol=1e-5)
    assert torch.allclose(shares.sum(0), torch.full((8,), 5.0), atol=1e-3)


def test_a_cluster_that_all_like_more_changes_nothing_and_a_row_that_likes_all_more_nothing_in_the_end() -> None:
    torch.manual_seed(0)
    scores = torch.rand(12, 3)
    assert torch.allclose(one_group(scores + torch.rand(1, 3)), one_group(scores), atol=1e-5)
    by_row = one_group(scores + torch.rand(12, 1), iterations=1000)
    assert torch.allclose(by_row, one_group(scores, iterations=1000), atol=1e-4)


def test_limits() -> None:
    assert torch.equal(one_group(torch.rand(7, 1)), torch.ones(7, 1))
    assert torch.allclose(one_group(torch.full((7, 4), 0.3)), torch.full((7, 4), 0.25))
    assert one_group(torch.rand(0, 4)).shape == (0, 4)
    assert torch.allclose(one_group(torch.rand(1, 4)), torch.full((1, 4), 0.25))


def test_the_order_of_rows_is_of_no_consequence() -> None:
    torch.manual_seed(0)
    scores, group, order = torch.rand(20, 3), torch.randint(0, 4, (20,)), torch.randperm(20)
    assert torch.allclose(sinkhorn(scores[order], group[order], 4), sinkhorn(scores, group, 4)[order], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_far_apart_and_half_precision_stay_finite(dtype: torch.dtype) -> None:
    scores = torch.tensor([[1000.0, -1000], [900, -1000], [-1000, 1000], [-1000, 5]], dtype=dtype)
    shares = one_group(scores)
    assert shares.dtype == torch.float32
    assert torch.allclose(shares, torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]))


def test_no_gradient_flows_through_an_assignment() -> None:
    assert not one_group(torch.rand(4, 2, requires_grad=True)).requires_grad
