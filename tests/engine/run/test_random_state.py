"""The state of the random generators on another number, or another kind, of devices."""

import random

import pytest
import torch

from mdistiller.engine.run.random_state import get_random_state, set_random_state


@pytest.mark.parametrize(("saved", "restored"), [([3], [3]), ([3, 4], [3]), ([], [])], ids=["one", "several", "a CPU"])
def test_the_state_of_another_number_of_gpus(monkeypatch, saved, restored):
    states = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: 5)
    monkeypatch.setattr(torch.cuda, "set_rng_state", states.append)
    device = torch.device("cuda")
    state = get_random_state(device)
    assert state["cuda"] == [5]
    drawn = random.random(), torch.rand(1)
    set_random_state({**state, "cuda": saved}, device)
    assert states == restored
    assert (random.random(), torch.rand(1)) == drawn
