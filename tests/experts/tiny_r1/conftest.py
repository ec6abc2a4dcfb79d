import pytest


@pytest.fixture
def one_thread() -> None:
    """Matrices of this size gain nothing from more threads, and on a busy machine threads wait for one another."""
    import torch

    torch.set_num_threads(1)
