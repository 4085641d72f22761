import pytest
import torch


@pytest.fixture
def in_float64():
    """Adam divides small gradients by their own size, step after step: in float64 what rounding makes of it is nothing
    beside what another formula would."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
