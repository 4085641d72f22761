"""The simulated device itself: it computes, refuses what CUDA refuses and counts what CUDA waits for."""

import threading
from copy import deepcopy

import pytest
import torch
import triton
import triton.language as tl
from simulated_cuda import LOG, DeviceError

HERE = "tests/cuda/on_device/test_rules.py"


@pytest.fixture(autouse=True)
def counted():
    LOG.clear()


def on(device: str, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device)


def test_computes_with_gradients_as_the_cpu_does():
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 3)), torch.randn(11, 5)
    there = deepcopy(model).to("cuda")
    kept = there[0].weight
    assert kept is there.to("cuda")[0].weight and kept.device == torch.device("cuda:0") and kept.is_cuda
    for one, inputs in ((model, x), (there, x.cuda())):
        adam = torch.optim.Adam(one.parameters(), fused=True)
        one(inputs).square().sum().backward()
        adam.step()
    for ours, theirs in zip(model.parameters(), there.parameters(), strict=True):
        assert torch.equal(ours, theirs.cpu()) and torch.equal(ours.grad, theirs.grad.cpu())
    with torch.autocast("cuda", torch.bfloat16):
        assert there(x.cuda()).dtype == torch.bfloat16
    assert deepcopy(there)[0].weight.is_cuda and not there.cpu()[0].weight.is_cuda


MIXED = {
    "sum": lambda x, y: x + y,
    "product": lambda x, y: x @ y.T,
    "cat": lambda x, y: torch.cat([x, y]),
    "where": lambda x, y: torch.where(y > 0, x, x),
    "in place": lambda x, y: x.add_(y),
    "index_add": lambda x, y: x.index_add_(0, torch.arange(2, device=y.device), x[:2]),
    "gather": lambda x, y: x.gather(1, y.long()),
    "indexed": lambda x, y: y[x.long()[:, 0].abs().clamp(max=1)],
    "put": lambda x, y: x.__setitem__(0, y[0]) or x.index_put_((x[:, 0].argsort()[:1],), y[:1]),
    "embedding_bag": lambda x, y: torch.nn.functional.embedding_bag(y.long().abs(), x),
}


@pytest.mark.parametrize("other", ["cpu", "cuda:1"])
@pytest.mark.parametrize("name", MIXED)
def test_tensors_of_two_devices_do_not_meet(name, other):
    with pytest.raises(DeviceError, match=f"cuda:0.*{other}|{other}.*cuda:0|same device"):
        MIXED[name](on("cuda", 4, 4), on(other, 4, 4))


def test_a_scalar_of_the_cpu_meets_where_cuda_lets_it():
    x, two = on("cuda", 3, 3), torch.tensor(2.0)
    assert torch.equal((x * two).cpu(), x.cpu() * 2)
    assert torch.equal(torch.where(x > 0, x, two).cpu(), torch.where(x.cpu() > 0, x.cpu(), two))
    with pytest.raises(DeviceError):
        torch.stack([x[0, 0], two])
    with pytest.raises(DeviceError):
        x * on("cuda:1", 1)[0]


def test_what_cuda_has_not():
    x = on("cuda", 3, 3)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(DeviceError, match="not implemented"):
        x.long() @ x.long()
    with pytest.raises(DeviceError, match="too early"):
        x.to("cpu", non_blocking=True)
    with pytest.raises(RuntimeError, match="ordinal"):
        torch.cuda.set_device(2)


def test_generators_have_a_device():
    here, there = torch.Generator().manual_seed(3), torch.Generator("cuda").manual_seed(3)
    assert there.device == torch.device("cuda:0")
    for _ in range(2):
        assert torch.equal(torch.rand(4, generator=here), torch.rand(4, generator=there, device="cuda").cpu())
    with pytest.raises((DeviceError, RuntimeError), match="generator"):
        torch.rand(4, generator=there)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="generator"):
            torch.rand(4, generator=here if device == "cuda" else there, device=device)


WAITING = {
    "item": (lambda x: x.sum().item(), 1),
    "if": (lambda x: bool(x.sum() > 0), 1),
    "tolist": (lambda x: x.tolist(), 1),
    "cpu": (lambda x: x.cpu(), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "by mask": (lambda x: x[x > 0], 1),
    "put by mask": (lambda x: x.__setitem__(x > 0, x[x > 0]), 2),
    "filled by mask": (lambda x: x.__setitem__(x > 0, 0.0), 0),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 0.0), 0),
    "bincount": (lambda x: x.long().flatten().abs().bincount(), 2),
    "bincount of enough": (lambda x: x.long().flatten().abs().bincount(minlength=100), 2),
    "unique": (lambda x: x.unique(), 1),
    "equal": (lambda x: torch.equal(x, x), 1),
    "repeated": (lambda x: torch.arange(4, device="cuda").repeat_interleave(x.long().abs()[:, 0]), 1),
    "repeated to a size": (lambda x: x[:, 0].repeat_interleave(torch.ones_like(x[0]).long(), output_size=4), 0),
    "to the device": (lambda x: torch.ones(2).to("cuda"), 1),
    "made on the device": (lambda x: torch.full((2,), 3.0, device="cuda"), 0),
    "made of a list": (lambda x: torch.tensor([1.0, 2.0], device="cuda"), 1),
    "pinned": (lambda x: torch.ones(2).pin_memory().to("cuda", non_blocking=True), 0),
    "pinned, waited for": (lambda x: torch.ones(2).pin_memory().to("cuda"), 1),
    "to pinned memory": (lambda x: torch.empty(4, 4, pin_memory=True).copy_(x, non_blocking=True), 0),
    "to a view of it": (lambda x: torch.empty(8, 4, pin_memory=True)[4:].copy_(x, non_blocking=True), 0),
    "index of the cpu": (lambda x: x[torch.tensor([0, 1])], 1),
    "list": (lambda x: x[[0, 1]], 1),
    "slice": (lambda x: x[:2, 1] + x[None, 1, :2], 0),
    "topk": (lambda x: x.topk(2).values.sort().values.cumsum(0), 0),
    "synchronize": (lambda x: torch.cuda.synchronize(), 1),
}


@pytest.mark.parametrize("name", WAITING)
def test_the_host_waits(name):
    act, times = WAITING[name]
    x = on("cuda", 4, 4)
    LOG.clear()
    act(x)
    assert sum(LOG.synchronisations.values()) == times
    assert all(place.startswith(f"{HERE}:") for place in LOG.by_place())


def test_counts_launches_and_memory():
    x = on("cuda", 4, 4)
    LOG.clear()
    y = (x.T[:2].reshape(-1) * 2).square_()
    assert LOG.launches == {"aten.clone.default": 1, "aten.mul.Tensor": 1, "aten.square_.default": 1} or (
        sum(LOG.launches.values()) == 3
    )
    assert torch.cuda.memory_allocated() >= x.nbytes + y.nbytes
    before = torch.cuda.memory_allocated()
    del y
    assert torch.cuda.memory_allocated() < before <= torch.cuda.max_memory_allocated()


def test_threads_have_the_device_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.ones(2, device="cuda").sum().cpu()))
    thread.start()
    thread.join()
    assert found[0] == 2


def test_the_current_device():
    assert on("cuda", 1).device.index == 0
    with torch.cuda.device(1):
        assert torch.cuda.current_device() == 1
        assert on("cuda", 1).device == torch.ones(1).cuda().device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0


@triton.jit
def _doubled(x_ptr, BLOCK: tl.constexpr):
    place = x_ptr + tl.arange(0, BLOCK)
    tl.store(place, 2 * tl.load(place))


def test_triton_launches_on_the_current_device():
    x, y = torch.ones(4, device="cuda"), torch.ones(4, device="cuda:1")
    _doubled[(1,)](x, BLOCK=4)
    assert x.tolist() == [2.0] * 4 and LOG.launches["triton _doubled"] == 1
    for tensor in (y, y.cpu()):
        with pytest.raises(DeviceError, match="current device"):
            _doubled[(1,)](tensor, BLOCK=4)
    with torch.cuda.device(1):
        _doubled[(1,)](y, BLOCK=4)
    assert y.tolist() == [2.0] * 4


def test_streams_wait_for_each_other():
    side, x = torch.cuda.Stream(), on("cuda", 4)
    with torch.cuda.stream(side):
        with pytest.raises(DeviceError, match="another stream"):
            x + 1  # the draw of x may not be done
        side.wait_stream(torch.cuda.current_stream("cuda:1"))
        with pytest.raises(DeviceError, match="another stream"):
            x + 1
        side.wait_stream(torch.cuda.default_stream())
        y = x + 1
        done = side.record_event()
    with pytest.raises(DeviceError, match="another stream"):
        x.zero_()  # while it is read
    with pytest.raises(DeviceError, match="another stream"):
        y * 2
    torch.cuda.current_stream().wait_event(done)
    assert torch.equal((y * 2).cpu(), 2 * (x.cpu() + 1))
    x.zero_()


def test_the_host_waits_for_what_it_reads():
    x, flag = on("cuda:1", 4), torch.empty(4, pin_memory=True)
    flag.copy_(x, non_blocking=True)
    wrong, right = torch.cuda.Event(), torch.cuda.Event()
    wrong.record()  # on cuda:0, the current device
    right.record(torch.cuda.current_stream("cuda:1"))
    wrong.synchronize()
    with pytest.raises(DeviceError, match="landed"):
        flag.sum()
    with pytest.raises(DeviceError, match="landed"):
        bool(flag[0] > 0)
    assert not right.query() and right.query()  # a device is behind its host
    assert torch.equal(flag, x.cpu())

    there = torch.empty(4, device="cuda").copy_(flag, non_blocking=True)
    with pytest.raises(DeviceError, match="landed"):
        flag.zero_()  # before it has been read
    torch.cuda.synchronize()
    flag.zero_()
    assert torch.equal(there, x.to("cuda"))


@pytest.mark.parametrize("mend", [None, "record_stream", "wait"])
def test_freed_memory_is_not_given_away_while_it_is_read(mend):
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        x = torch.ones(4, device="cuda")
    main.wait_stream(side)
    x + 1
    if mend == "record_stream":
        x.record_stream(main)
    del x
    if mend == "wait":
        side.wait_stream(main)
    with torch.cuda.stream(side):
        if mend:
            torch.zeros(4, device="cuda")
        else:
            with pytest.raises(DeviceError, match="given away"):
                torch.zeros(4, device="cuda")
    side.wait_stream(main)
