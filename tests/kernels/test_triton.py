"""What only a GPU's kernels do: numbers in bfloat16, ties by index, slabs of columns; under Triton's interpreter."""

import contextlib
import math
import subprocess

import pytest
import torch
from bounds import Rounding, assert_within, product_bound

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("where there is a GPU, `make bench-gpu` compares Triton's kernels on it", allow_module_level=True)

from sae_sweeps.kernels import ahead, choose, cost, largest_triton, launching, sparse_reference, sparse_triton  # noqa: E402
from sae_sweeps.kernels.pairs import Pairs, per_token  # noqa: E402
from scripts import derived_times  # noqa: E402


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_index(z, k):
    """Columns of the k largest of each row, of equal ones those with the smallest columns; NaN is the largest."""
    key = lambda row, j: (-math.inf if math.isnan(row[j]) else -row[j], not math.isnan(row[j]), j)  # noqa: E731
    return [sorted(sorted(range(len(row)), key=lambda j, row=row: key(row, j))[:k]) for row in z.tolist()]


def rows_with_ties(n, dtype):
    z = normal(10, n, dtype=torch.float32)
    z[1], z[2, ::3], z[3], z[4, 5:90] = 0.0, 2.0, -math.inf, math.nan
    z[5], z[5, ::2] = -0.0, 0.0
    z[6] = (z[6] * 4).round() / 4
    z[7, : n // 2], z[7, n // 2 :] = math.inf, -1e38
    z[8] = 1.0
    z[8, n - 3 :] = torch.tensor([3.0, 1.0, 2.0])
    z[9] = torch.linspace(-1e30, 1e30, n)
    return z.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(1500, 1), (1500, 40), (2500, 7), (130, 33)])
def test_of_equal_numbers_the_first_are_taken(n, k, dtype):
    z = rows_with_ties(n, dtype)
    values, indices = largest_triton.largest(z, k)
    assert indices.tolist() == by_index(z, k)  # and in the order of their columns
    assert values.dtype == dtype and torch.equal(values.nan_to_num(9.0), z.gather(1, indices).nan_to_num(9.0))


def test_a_row_that_is_read_anew_gives_the_same(monkeypatch):
    """Where more numbers reach the bound than are held as candidates."""
    z = rows_with_ties(700, torch.float32)
    monkeypatch.setattr(largest_triton, "_sizes", lambda n, k: (256, 64))
    assert largest_triton.largest(z, 50)[1].tolist() == by_index(z, 50)


@pytest.mark.parametrize("k", [1, 40, 320, 1152])
@pytest.mark.parametrize("n", [5000, 16_384, 65_536])
def test_groups_are_enough_for_k_and_candidates_for_the_groups(n, k):
    groups, kept = largest_triton._sizes(n, k)
    assert groups >= 2 * k and kept * groups >= (k + k // 8) * n


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sums_over_several_slabs(dtype, monkeypatch):
    """Rows that are longer than what a program computes, and no multiple of it."""
    monkeypatch.setattr(cost, "dense_is_cheaper", lambda *_: False)
    B, N, D = 3, 6, 300
    pairs = Pairs(torch.tensor([0, 0, 10, 12]), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 1, 4]), N, sparse_triton)
    values, W, g = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate([(12,), (N, D), (B, D)]))
    plain = Pairs(pairs.start, pairs.feature, N, sparse_reference)
    for name, arguments in {
        "dots": (W, g),
        "residual": (values, W, W[0], g),
        "weight_gradient": (values, g),
    }.items():
        found, rounding = getattr(sparse_triton, name)(pairs, *arguments), Rounding(dtype)
        # a token with a feature twice: the reference adds up, as the kernels do
        with rounding:
            f = torch.zeros(B, N, dtype=torch.float64).index_put((plain.token, plain.feature), values.double(), True)
            double = [a.double() for a in arguments]
            if name == "dots":
                expected = (double[1] @ double[0].T)[plain.token, plain.feature]
            elif name == "weight_gradient":
                expected = f.T @ double[1]
            else:
                error = double[3] - double[2] - f @ double[1]
                expected = error, error.square().sum(1), (error @ double[1].T)[plain.token, plain.feature]
        both = zip(found, expected, strict=True) if name == "residual" else [(found, expected)]
        for one, other in both:
            rounding.assert_close(one, other, factor=2)


def test_dense_products_round_their_factors_alone(monkeypatch):
    """In bfloat16 precision; sums stay in float32, and a gradient of weights is rounded once."""
    monkeypatch.setattr(cost, "dense_is_cheaper", lambda *_: True)
    B, N, D, k = 6, 40, 16, 5
    indices = normal(B, N).topk(k, dim=1).indices
    monkeypatch.setattr("sae_sweeps.kernels.pairs.torch.is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr("sae_sweeps.kernels.pairs.torch.get_autocast_dtype", lambda device: torch.bfloat16)
    pairs = per_token(indices, N, sparse_triton)
    assert pairs.products == torch.bfloat16
    values, W, g = (normal(*s, seed=i, dtype=torch.float32) for i, s in enumerate([(B * k,), (N, D), (B, D)]))
    f = sparse_reference.dense(pairs, values)
    rounded = lambda t: t.bfloat16().double()  # noqa: E731
    other = values.flip(0)
    for found, a, b, dtype in [
        (sparse_triton.decode(pairs, values, W), f, W, torch.float32),
        (sparse_triton.weight_gradient(pairs, values, g), f.T, g, torch.bfloat16),
        (sparse_triton.weight_gradient(pairs, other, g), sparse_reference.dense(pairs, other).T, g, torch.bfloat16),
    ]:
        assert found.dtype == dtype
        expected, bound = rounded(a) @ rounded(b), product_bound(rounded(a), rounded(b), torch.float32)
        assert_within(found, expected, bound + (expected.abs() + bound) * (2.0**-8 if dtype == torch.bfloat16 else 0))
    found, expected = sparse_triton.dots(pairs, W, g), (rounded(g) @ rounded(W).T)[pairs.token, pairs.feature]
    bound = product_bound(rounded(g), rounded(W).T, torch.float32)[pairs.token, pairs.feature]
    assert found.dtype == torch.float32 and torch.equal(found, found.bfloat16().float())
    assert_within(found, expected, bound + (expected.abs() + bound) * 2.0**-8)


def test_what_costs_less_is_taken():
    """Sums where few features are active, products where many are, from fewer on where products are fast."""
    for device in cost.DEVICES.values():
        ks = [derived_times.break_even(device, 2048, 2304 * 7, 2304, p) for p in ("bfloat16", "tf32", "float32")]
        assert 20 < ks[0] < ks[1] < ks[2] < 4000
        for operation in ("decode", "dots", "weight_gradient"):
            chosen = [cost.dense_is_cheaper(operation, device, 2048, 16_384, 2304, 2048 * k, "bfloat16")
                      for k in (8, 32, 320, 1000)]  # fmt: skip
            assert chosen == [False, False, True, True]


GPU = torch.device("cuda", 7)


def no_compiler(device):
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")


def no_headers(device):
    raise subprocess.CalledProcessError(1, ["gcc", "main.c"])


@pytest.mark.parametrize(("attempt", "cause"), [(no_compiler, "find C compiler"), (no_headers, "non-zero exit status")])
def test_where_triton_cannot_build_plain_formulas_are_taken_with_one_warning(attempt, cause, monkeypatch):
    monkeypatch.setattr(choose, "_faults", {})
    monkeypatch.setattr(choose, "_try_triton", attempt)
    with pytest.warns(
        RuntimeWarning, match=f"cuda:7: Triton cannot build its kernels .*{cause}.*plain torch"
    ) as warned:
        kernels = [choose.choose("auto", GPU) for _ in range(3)]
    assert kernels == [None] * 3 and len(warned) == 1
    assert cause in choose.recorded_name(None, GPU) and "\n" not in choose.recorded_name(None, GPU)
    assert choose.recorded_name(None, torch.device("cpu")) == "reference"


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(choose, "_faults", {})
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="the package triton is not installed"):
        assert choose.choose("auto", GPU) is None


def test_a_kernel_that_this_gpu_cannot_have_is_found_before_the_first_step(monkeypatch):
    """While activations are harvested; the runs then take the plain formulas."""
    monkeypatch.setattr(choose, "_faults", {})
    monkeypatch.setattr(choose, "_try_triton", lambda device: None)
    assert choose.choose("auto", GPU) is sparse_triton
    monkeypatch.setattr(ahead, "_prepare_gpu", lambda device, shapes: no_compiler(device))
    with pytest.warns(RuntimeWarning, match="C compiler"):
        ahead.prepare("auto", GPU, [launching.StepShape(8, 16, 32, 4)]).join()
    assert choose.choose("auto", GPU) is None


def test_what_a_step_launches_is_compiled_without_memory(monkeypatch):
    """For every operation, k and precision; under the interpreter nothing is compiled, but all is called."""
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or contextlib.nullcontext())
    shapes = [
        launching.StepShape(8, 16, 32, 4),
        launching.StepShape(2048, 2304, 16_384, 320, products=torch.bfloat16),
        launching.StepShape(8, 16, 32, 4, torch.float64, torch.float64),
        launching.StepShape(8, 16, 32, 4, competition=True),
    ]
    compiled = []
    monkeypatch.setattr("sae_sweeps.kernels.coactivation_triton.compile_for", compiled.append)
    ahead._prepare_gpu(GPU, shapes)
    assert entered == [GPU] and compiled == shapes[-1:]


def test_the_kernel_that_cannot_be_built_is_named(monkeypatch):
    class Broken:
        fn, cache_key = sparse_triton._sums.fn, ""

        def warmup(self, *args, **constants):
            no_compiler(None)

    monkeypatch.setattr(sparse_triton, "_sums", Broken())
    monkeypatch.setattr(choose, "_faults", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    with pytest.warns(RuntimeWarning, match="Failed to find C compiler.*, in the kernel _sums"):
        choose.note(GPU, "", lambda device: ahead._prepare_gpu(device, [launching.StepShape(8, 16, 32, 4)]))


def test_a_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    class Other(torch.Tensor):
        device = torch.device("cuda", 1)

    entered = []

    class Entered:
        def __init__(self, device):
            entered.append(device)

        def __enter__(self):
            entered.append("in")

        def __exit__(self, *_):
            entered.append("out")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", Entered)
    kernel = type("Kernel", (), {"__getitem__": lambda self, grid: lambda *_, **__: entered.append(grid)})()
    launching.launch(kernel, [3], torch.zeros(1).as_subclass(Other), 5)
    assert entered == [torch.device("cuda", 1), "in", (3,), "out"]
