"""Any module: what is averaged, under which name, and with which numbers."""

from __future__ import annotations

import copy
import os
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.distributed
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from polyak import PlanError
from polyak.torch import EMA

from .conftest import Beside, array, plain

Peak = Callable[[Callable[[], object]], int]


class Tied(nn.Module):
    """A language model's embedding and head on one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


class TiedByMemory(Tied):
    """The same with two parameters on one memory, as some loaders leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.embed.weight.data)


class Odd(nn.Module):
    """Parameters of every form a single tensor can have."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Parameter(torch.randn(4, 6)[:, ::2])
        self.transposed = nn.Parameter(torch.randn(3, 5).t())
        self.offset = nn.Parameter(torch.randn(8)[3:])
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.one = nn.Parameter(torch.randn(1, 1, 1))
        self.wide = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.short = nn.Parameter(torch.randn(3).half())
        self.brain = nn.Parameter(torch.randn(3).bfloat16())
        self.complex = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.wide_complex = nn.Parameter(torch.randn(3, dtype=torch.complex128))
        self.integer = nn.Parameter(torch.arange(3), requires_grad=False)
        self.nothing = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.register_parameter("missing", None)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("counter", torch.tensor(2**53 + 1))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        real = self.strided.sum() + self.transposed.sum() + self.offset.sum() + self.scalar + self.one.sum()
        cast = self.wide.sum().float() + self.short.float().sum() + self.brain.float().sum()
        return x * (real + cast + (self.complex.sum() + self.wide_complex.sum()).abs() + self.counter % 7)


class Flat(nn.Module):
    """Parameters that are views of one memory, as flat optimizers and cuDNN's RNNs keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = [torch.randn(10)]
        self.a = nn.Parameter(self.flat[0][:6].view(3, 2))
        self.b = nn.Parameter(self.flat[0][6:].view(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a.t() @ torch.ones(3, 2) @ self.b


class Stubborn(nn.Module):
    """Attributes that refuse to be copied: a lock, a generator, and what a process group looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.lock = threading.Lock()
        self.stream = (i for i in range(3))
        self.settings = {"lock": self.lock, "me": self}

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.linear(x)


class Shared(nn.Module):
    """One submodule under two names, one of them inside a list."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([self.block, nn.Linear(2, 2), self.block])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, num_layers=2, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.unsqueeze(1))[0]


class Sparse(nn.Module):
    """A graph network's adjacency, kept as a sparse buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("adjacency", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.adjacency, self.linear(x))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2), nn.InstanceNorm2d(2)
    )


def channels_last() -> nn.Module:
    return convolutional().to(memory_format=torch.channels_last)


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    return model


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 3)), nn.Linear(3, 2))
    model(torch.ones(1, 2))  # leaves a computed, uncopyable weight behind
    return model


def old_weight_norm_lstm() -> nn.Module:
    model = Recurrent()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.lstm, "weight_hh_l0")
    model(torch.ones(3, 2))
    return model


def old_spectral_norm() -> nn.Module:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 3)), nn.utils.spectral_norm(nn.Linear(3, 2)))
    model(torch.ones(1, 2))
    return model


def new_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.Linear(3, 2))


def new_spectral_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)), nn.Linear(3, 2))


def orthogonal() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)))


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    prune.l1_unstructured(model[0], "weight", amount=2)
    return model


def traced() -> nn.Module:
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))


def compiled() -> nn.Module:
    return torch.compile(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), backend="eager")


def compiled_in_place() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    model.compile(backend="eager")
    return model


def compiled_parts() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    model[0] = torch.compile(model[0], backend="eager")
    model[2][1] = torch.compile(model[2][1], backend="eager")
    return torch.compile(model, backend="eager")


def compiled_forward() -> nn.Module:
    model = nn.Linear(2, 3)
    model.forward = torch.compile(model.forward, backend="eager")
    return nn.Sequential(model, nn.Linear(3, 2))


PAIRS = torch.linspace(-1, 1, 6).view(3, 2)
IMAGES = torch.linspace(-1, 1, 2 * 2 * 6 * 6).view(2, 2, 6, 6)
TOKENS = torch.tensor([[1, 2, 3]])

# name: (model, an input)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolution and batch norm": (convolutional, IMAGES),
    "channels last": (channels_last, IMAGES.contiguous(memory_format=torch.channels_last)),
    "embedding": (lambda: nn.Embedding(7, 4, padding_idx=0), TOKENS),
    "tied": (Tied, TOKENS),
    "tied by memory": (TiedByMemory, TOKENS),
    "odd tensors": (Odd, PAIRS),
    "views of one memory": (Flat, PAIRS),
    "uncopyable attributes": (Stubborn, PAIRS),
    "a submodule under several names": (Shared, PAIRS),
    "recurrent": (Recurrent, PAIRS),
    "attention": (lambda: nn.TransformerEncoderLayer(2, 1, 4, batch_first=True), PAIRS.unsqueeze(0)),
    "sparse buffer": (Sparse, PAIRS),
    "frozen": (frozen, PAIRS),
    "old weight norm": (old_weight_norm, PAIRS),
    "old weight norm in an LSTM": (old_weight_norm_lstm, PAIRS),
    "old spectral norm": (old_spectral_norm, PAIRS),
    "weight norm": (new_weight_norm, PAIRS),
    "spectral norm": (new_spectral_norm, PAIRS),
    "orthogonal": (orthogonal, PAIRS),
    "pruned": (pruned, PAIRS),
    "traced by fx": (traced, PAIRS),
    "compiled": (compiled, PAIRS),
    "compiled in place": (compiled_in_place, PAIRS),
    "compiled parts": (compiled_parts, PAIRS),
    "compiled forward": (compiled_forward, PAIRS),
    "float64": (lambda: nn.Linear(2, 2).double(), PAIRS.double()),
}
every_model = pytest.mark.parametrize(("build", "x"), MODELS.values(), ids=MODELS)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


@every_model
def test_every_averaged_tensor_follows_the_reference(build: Callable[[], nn.Module], x: Tensor) -> None:
    side = Beside(build())
    side.run().check()


@every_model
def test_what_is_averaged_is_every_trained_tensor_once(build: Callable[[], nn.Module], x: Tensor) -> None:
    model = build()
    averaged = EMA(model, 0.9).tracks["average"].tensors
    expected = {
        plain(name)
        for name, p in model.named_parameters()
        if p.requires_grad and not (isinstance(model, TiedByMemory) and name == "head.weight")
    } | {plain(name) for name, _ in model.named_buffers() if "running_" in name}
    assert set(averaged) == expected


@every_model
def test_what_is_not_averaged_is_bit_equal_to_the_model(build: Callable[[], nn.Module], x: Tensor) -> None:
    side = Beside(build()).run()
    averaged = side.ema.tracks["average"].tensors
    twin = side.ema.module
    live = {name: t for name, t in side.tensors().items() if not t.requires_grad and name not in averaged}
    held = dict([*twin.named_parameters(), *twin.named_buffers()])
    for name in live:
        assert held[name].dtype == live[name].dtype
        assert torch.equal(held[name].to_dense(), live[name].to_dense()), name


@every_model
def test_the_module_and_the_swapped_model_agree(build: Callable[[], nn.Module], x: Tensor) -> None:
    side = Beside(build()).run()
    model = side.model.eval()
    with torch.no_grad():
        raw = model(x)
        raw_again = model(x)
        from_module = side.ema(x)
        with side.ema.average_parameters():
            swapped = model(x)
        after = model(x)
    exact = (
        {} if not isinstance(model, Odd) else {"rtol": 1e-3, "atol": 1e-3}
    )  # 16-bit in the live model only
    torch.testing.assert_close(from_module, swapped, **exact)
    assert torch.equal(raw, raw_again), "the model itself is not deterministic, so this proves nothing"
    assert torch.equal(raw, after)
    assert not torch.allclose(raw, swapped), "raw and average must differ for this to prove anything"


@every_model
def test_the_file_has_the_names_of_the_unwrapped_state_dict(
    build: Callable[[], nn.Module], x: Tensor, tmp_path: os.PathLike[str]
) -> None:
    model = build()
    ema = EMA(model, 0.9)
    if isinstance(model, Sparse):
        pytest.skip("safetensors has no sparse tensors")
    if isinstance(model, Odd):
        pytest.skip("safetensors has no complex128")
    path = os.path.join(tmp_path, "average.safetensors")
    ema.save(path)
    assert set(load_file(path)) == {plain(name) for name in model.state_dict()}


# --- tied weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Tied, TiedByMemory, Shared])
def test_tied_weights_are_averaged_once_per_update(build: Callable[[], nn.Module]) -> None:
    """A loop over state_dict() meets both names, and decay 0.9 acts as 0.81."""
    model = build()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1)
    ema = EMA(model, 0.9)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    ema.update()
    for average in ema.tracks["average"].tensors.values():
        torch.testing.assert_close(average, torch.full_like(average, 0.9))


def test_tied_weights_are_tied_in_the_module() -> None:
    tied = EMA(Tied(), 0.9).module
    assert tied.embed.weight is tied.head.weight
    by_memory = EMA(TiedByMemory(), 0.9).module
    assert by_memory.embed.weight.data_ptr() == by_memory.head.weight.data_ptr()


# --- buffers -----------------------------------------------------------------------------------------


def test_integer_buffers_are_not_averaged_through_float_and_truncated() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    model.register_buffer("seen", torch.arange(1000) * 12345)
    ema = EMA(model, 0.9999)
    for _ in range(3):
        model(torch.randn(4, 2))
        model.seen += 1
        ema.update()
        assert ema.module[0].num_batches_tracked == model[0].num_batches_tracked
        assert torch.equal(ema.module.seen, model.seen)


@pytest.mark.parametrize("policy", ["auto", "copy", "average", "ignore"])
def test_a_kept_buffer_does_not_alias_the_models(policy: str) -> None:
    """Mutate the model after the update; the average must not move."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("table", torch.randn(3))
    model.index = nn.Parameter(torch.arange(3), requires_grad=False)  # no number to average, but state
    ema = EMA(model, 0.9, buffers=policy)
    ema.update()
    before = {name: t.clone() for name, t in ema.module.state_dict().items()}
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    buffers = {name for name, _ in model.named_buffers()}
    for name, tensor in ema.module.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        assert moved == (policy == "ignore" and name in buffers), name


@pytest.mark.parametrize(
    ("policy", "averaged"),
    [
        ("auto", {"running_mean", "running_var"}),
        ("copy", set()),
        ("average", {"running_mean", "running_var", "table"}),
        ("ignore", set()),
    ],
)
def test_each_buffer_policy_averages_what_it_says(policy: str, averaged: set[str]) -> None:
    model = nn.BatchNorm1d(2)
    model.register_buffer("table", torch.randn(3))
    side = Beside(model, buffers=policy)
    side.run().check()
    assert set(side.ema.tracks["average"].tensors) == {"weight", "bias"} | averaged


@pytest.mark.parametrize("build", [old_spectral_norm, new_spectral_norm])
@pytest.mark.parametrize("policy", ["auto", "copy", "average"])
def test_spectral_norm_vectors_stay_unit_vectors(build: Callable[[], nn.Module], policy: str) -> None:
    """Their average is shorter than one, and evaluation divides by the norm they measure."""
    model = build().train()
    ema = EMA(model, 0.9, buffers=policy)
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape))
        model(PAIRS)
        ema.update()
    vectors = [t for name, t in ema.module.named_buffers() if name.endswith(("_u", "_v"))]
    assert len(vectors) >= 2
    for vector in vectors:
        torch.testing.assert_close(vector.norm(), torch.tensor(1.0))


def test_a_deep_spectrally_normed_network_does_not_blow_up_in_evaluation() -> None:
    layers = [nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8, bias=False)) for _ in range(40)]
    model = nn.Sequential(*layers).train()
    for _ in range(30):
        model(torch.randn(1, 8))
    ema = EMA(model, 0.9)
    for _ in range(10):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape), alpha=0.002)
        model(torch.randn(1, 8))
        ema.update()
    x = torch.nn.functional.normalize(torch.randn(16, 8))
    assert ema(x).norm(dim=1).max() < 1.5  # each layer has norm one


# --- precision ---------------------------------------------------------------------------------------


def test_bfloat16_parameters_average_into_float32_exactly() -> None:
    """A 16-bit average never moves at high decay; some libraries crash on the mixed dtypes instead."""
    side = Beside(nn.Linear(4, 3).bfloat16(), 0.9999)
    assert all(t.dtype == torch.float32 for t in side.ema.tracks["average"].tensors.values())
    start = array(side.ema.tracks["average"].tensors["weight"])
    side.run(50).check()
    assert np.abs(array(side.ema.tracks["average"].tensors["weight"]) - start).max() > 1e-3


def test_the_memory_meter_sees_a_temporary(peak_bytes: Peak) -> None:
    source = torch.zeros(1 << 20)
    assert 4 << 20 <= peak_bytes(lambda: source + 1) < 5 << 20
    assert peak_bytes(lambda: (source + 1) is not None and (source + 2)) < 5 << 20  # freed between
    assert peak_bytes(lambda: source.add_(1)) < 1024


@pytest.mark.parametrize("masked", [False, True], ids=["finite", "one NaN"])
def test_updating_a_bfloat16_model_makes_no_temporary_model(peak_bytes: Peak, masked: bool) -> None:
    model = nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(12)]).bfloat16()
    size = sum(p.numel() for p in model.parameters()) * 4
    ema = EMA(model, 0.9)
    ema.update()
    if masked:
        with torch.no_grad():
            model[0].weight[0, 0] = float("nan")
    assert peak_bytes(ema.update) < size / 3


def test_updating_a_float32_model_allocates_next_to_nothing(peak_bytes: Peak) -> None:
    model = nn.Sequential(*[nn.Linear(512, 512) for _ in range(4)], nn.BatchNorm1d(512))
    ema = EMA(model, 0.9)
    ema.update()
    assert peak_bytes(ema.update) < 64 << 10


# --- wrappers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [compiled, compiled_parts])
def test_compile_prefixes_do_not_freeze_the_average(build: Callable[[], nn.Module]) -> None:
    """A library that filters by name finds ``_orig_mod.`` in front of all of them and averages nothing."""
    side = Beside(build())
    side.run().check()
    assert not any("_orig_mod" in name for name in side.ema.tracks["average"].tensors)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_inductor_code_sees_the_weights_that_are_live() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    fast = torch.compile(model)
    side = Beside(fast)
    with torch.no_grad():
        fast(PAIRS)
        side.run().check()
        raw = model(PAIRS)
        with side.ema.average_parameters():
            torch.testing.assert_close(fast(PAIRS), model(PAIRS))
            torch.testing.assert_close(fast(PAIRS), side.ema(PAIRS))
            assert not torch.allclose(fast(PAIRS), raw)
        torch.testing.assert_close(fast(PAIRS), raw)


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")  # DDP's broadcast of buffers
@pytest.mark.parametrize("compile_it", [False, True], ids=["DDP", "compiled DDP"])
def test_a_model_in_ddp(compile_it: bool) -> None:
    inner = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model: nn.Module = DistributedDataParallel(inner)
    if compile_it:
        model = torch.compile(model, backend="eager")
    side = Beside(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(5, 2)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        side.update()
    side.check()
    assert set(side.ema.tracks["average"].tensors) > {"0.weight", "1.running_mean", "2.bias"}
    model.eval()
    with side.ema.average_parameters(), torch.no_grad():
        torch.testing.assert_close(model(PAIRS), side.ema(PAIRS))
    assert isinstance(side.ema.module, nn.Sequential)
    model.train()(torch.randn(5, 2)).sum().backward()  # DDP's hooks and buckets survived


@pytest.mark.usefixtures("process_group")
def test_a_module_that_keeps_a_process_group() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.SyncBatchNorm(3))
    model.group = torch.distributed.group.WORLD
    side = Beside(model)
    side.run().check()
    assert side.ema.module.group is model.group


# --- modules that cannot be copied as a whole --------------------------------------------------------


@pytest.mark.parametrize("build", [old_weight_norm, old_weight_norm_lstm, Stubborn])
def test_the_models_that_deepcopy_refuses_really_are_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        copy.deepcopy(build())


def test_what_cannot_be_copied_is_shared_and_the_rest_is_not() -> None:
    model = Stubborn()
    model.notes = ["a"]
    twin = EMA(model, 0.9).module
    assert twin.lock is model.lock
    assert twin.notes == model.notes
    assert twin.notes is not model.notes


def test_references_between_modules_are_kept_inside_the_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].__dict__["parent"] = model
    model[1].neighbours = [model[0].weight]
    twin = EMA(model, 0.9).module
    assert twin[0].parent is twin
    assert twin[1].neighbours[0] is twin[0].weight


def test_a_hook_bound_to_a_module_runs_on_the_copy() -> None:
    class Hooked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_forward_hook(self.after)

        def after(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
            return output + self.bias

    side = Beside(Hooked()).run()
    with side.ema.average_parameters(), torch.no_grad():
        torch.testing.assert_close(side.model(PAIRS), side.ema(PAIRS))


def test_a_class_whose_new_asks_for_arguments_can_be_copied() -> None:
    class Picky(nn.Linear):
        def __new__(cls, size: int) -> Picky:
            return super().__new__(cls)

        def __init__(self, size: int) -> None:
            super().__init__(size, size)

    assert isinstance(EMA(Picky(2), 0.9).module, Picky)


def test_a_replaced_forward_that_holds_the_live_model_holds_the_average_in_the_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    original = model[0].forward
    model[0].forward = lambda x: 2 * original(x)
    ema = EMA(model, 0.9)
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    with ema.average_parameters():
        torch.testing.assert_close(ema(PAIRS), model(PAIRS))


def test_a_replaced_forward_without_a_closure_is_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].forward = torch.nn.functional.relu
    torch.testing.assert_close(EMA(model, 0.9)(PAIRS), PAIRS.relu())


# --- models that are refused -------------------------------------------------------------------------


def test_lazy_modules_are_refused_until_they_have_run() -> None:
    model = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(PlanError, match=r"0\.weight is not initialised yet: run the model once"):
        EMA(model, 0.9)
    model(PAIRS)
    Beside(model).run().check()


def test_meta_tensors_are_refused() -> None:
    with pytest.raises(PlanError, match=r"weight is on the meta device .* materialise"):
        EMA(nn.Linear(2, 2, device="meta"), 0.9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_with_the_way_out() -> None:
    with pytest.raises(PlanError, match=r"1 is TorchScript.*Average the module it was made from"):
        EMA(nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Linear(2, 2))), 0.9)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)])
def test_a_model_with_nothing_to_average_is_refused(model: nn.Module) -> None:
    with pytest.raises(PlanError, match=f"{type(model).__name__} has nothing to average"):
        EMA(model, 0.9)


def test_parametrizations_keep_their_cache_to_themselves() -> None:
    side = Beside(orthogonal()).run()
    with parametrize.cached(), torch.no_grad():
        raw, average = side.model(PAIRS), side.ema(PAIRS)
    assert not torch.allclose(raw, average)
