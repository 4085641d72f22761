"""For which shapes a GPU's kernels are compiled before the first step."""

import torch
from composed import D_IN, configured

from sae_sweeps.runs.execute import step_shapes


def test_for_each_k_of_a_schedule():
    """And for the dtype of the products, whose output the selection reads."""
    shapes = step_shapes(configured("architecture=topk", "k=4", "architecture.k_start=16", "train.precision=bfloat16"))
    assert {shape.k for shape in shapes} == set(range(4, 17))
    assert {(shape.dtype, shape.products) for shape in shapes} == {(torch.float32, torch.bfloat16)}
    assert not any(shape.competition for shape in shapes)


def test_for_a_penalty_on_pairs_of_features():
    assert all(shape.competition for shape in step_shapes(configured("penalty=ortho")))


def test_for_an_architecture_without_k():
    (alone,) = step_shapes(configured("architecture=standard", "train.precision=float64"))
    assert (alone.d_in, alone.dtype, alone.products) == (D_IN, torch.float64, torch.float64)
