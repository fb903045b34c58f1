"""Fixtures for every test: a fixed seed and global state that no test can leave changed."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_state() -> Iterator[None]:
    """Seed torch, take one thread (the test processes share the cores), and restore what the test changed."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
