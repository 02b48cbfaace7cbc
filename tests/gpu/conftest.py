"""The tests in this folder need a CUDA device, and are skipped without one."""

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
