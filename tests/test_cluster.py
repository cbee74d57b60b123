"""Pieces of work on a real Dask scheduler with worker processes; test_resume.py predicts on one."""

import os

import pytest

from skysense_core.cluster import on_cluster
from skysense_core.errors import SkysenseError, UsageError

pytest.importorskip("distributed")


def double(number: int) -> int:
    return 2 * number


def refuse(number: int) -> int:
    raise SkysenseError(f"piece {number} cannot be done", fix="Leave it out.")


def halves(count: int) -> list[int]:
    assert count == 8
    return [1, 2, 3]


@pytest.mark.slow
def test_nobody_at_the_address_is_a_clear_message(monkeypatch):
    monkeypatch.setattr("skysense_core.cluster.WAIT", 3)
    with pytest.raises(UsageError, match=r"--cluster tcp://127.0.0.1:1: no scheduler answers"):
        list(on_cluster("tcp://127.0.0.1:1", halves, double))


@pytest.mark.slow
def test_pieces_come_back_and_errors_keep_their_words():
    before = dict(os.environ)
    assert sorted(on_cluster("local", halves, double, workers=2)) == [2, 4, 6]
    assert dict(os.environ) == before
    with pytest.raises(SkysenseError, match=r"piece \d cannot be done") as caught:
        list(on_cluster("local", halves, refuse, workers=2))
    assert caught.value.fix == "Leave it out."
