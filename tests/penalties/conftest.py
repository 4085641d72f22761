import pytest
import torch

from sae_sweeps.architectures import group_layer
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.architectures.context import Context
from sae_sweeps.kernels import gram, sparse_numba
from sae_sweeps.kernels.features import DenseFeatures, TopKFeatures
from sae_sweeps.penalties import adaptive_sharing, bottleneck, contrastive


class BareSAE:
    """The part of an SAE that pairwise penalties look at."""

    kernels = sparse_numba

    def __init__(self, W_dec):
        self.W_dec = W_dec

    @property
    def d_sae(self):
        return len(self.W_dec)


@pytest.fixture
def context():
    def make(W_dec, f, step=0, total_steps=10, top_k=None):
        n = len(f)
        numbers = torch.arange(n, dtype=torch.int32)
        x = torch.zeros(n, W_dec.shape[1], dtype=W_dec.dtype)
        batch = Batch(x, numbers, numbers * 0, numbers, torch.zeros(n, dtype=torch.int8))
        features = DenseFeatures(f)
        if top_k:
            values, indices = f.topk(top_k, dim=1, sorted=False)
            features = TopKFeatures(values, indices, f.shape[1])
        return Context(BareSAE(W_dec), batch, x, f, features, x, step, total_steps, 0)

    return make


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def form(request, monkeypatch):
    """Formulas whose sizes may depend on values, and those that never read one."""
    for module in (group_layer, gram, adaptive_sharing, bottleneck, contrastive):
        monkeypatch.setattr(module, "asynchronous", lambda tensor: request.param == "as on a GPU")
