"""``polyak.Teacher``: an average as a module, beside its student in the model that holds both."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import Tensor, nn

import polyak
from polyak import Adaptive, CheckpointError, ConfigError, SwapError, Teacher
from tests.tensors import COPIES, same, through_a_file


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))


class Pair(nn.Module):
    """A student and its teacher, as self-distillation has them."""

    def __init__(self, decay: Any = 0.9, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = network()
        self.teacher = Teacher(self.student, decay, **options)

    def forward(self, x: Tensor) -> Tensor:
        return (self.student(x + 0.1) - self.teacher(x)).square().mean() + self.student(x).square().mean()


def train(pair: Any, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        pair.zero_grad()
        pair(torch.randn(8, 3)).backward()
        with torch.no_grad():
            for parameter in pair.student.parameters():
                parameter.sub_(0.1 * parameter.grad)
        pair.teacher.update()


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_it_is_the_recursion_under_the_names_of_a_module() -> None:
    pair = Pair(0.75)
    wanted = {name: tensor.double() for name, tensor in copied(pair.student).items()}
    for step in range(6):
        train(pair, range(step, step + 1))
        for name, tensor in pair.student.state_dict().items():
            wanted[name] = 0.75 * wanted[name] + 0.25 * tensor if tensor.is_floating_point() else tensor
    held = pair.teacher.state_dict()
    assert held.keys() == {f"module.{name}" for name in wanted} | {"_extra_state"}
    for name, tensor in wanted.items():
        torch.testing.assert_close(held[f"module.{name}"].double(), tensor.double(), rtol=1e-5, atol=1e-6)
    assert pair.teacher.ema.step == 6
    assert torch.equal(pair.teacher.module[0].weight, held["module.0.weight"])


def test_the_student_is_not_below_the_teacher() -> None:
    pair = Pair()
    assert not {*map(id, pair.student.modules())} & {*map(id, pair.teacher.modules())}
    assert len(list(pair.parameters())) == 2 * len(list(pair.student.parameters()))
    assert {name.partition(".")[0] for name in pair.state_dict()} == {"student", "teacher"}
    assert len(pair.state_dict()) == 2 * len(pair.student.state_dict()) + 1


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rising": {"decay": polyak.Cosine(0.9, 1.0, total=12)},
    "batch": {"batchnorm": "batch", "decay": polyak.Power(gamma=3)},
    "bfloat16": {"dtype": torch.bfloat16, "seed": 5},
    "split": {"dtype": "split"},
    "compensated": {"compensated": True},
    "every": {"every": 4, "start": 2},
    "partly": {"include": "0.*"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_one_file_of_the_model_that_holds_both_resumes_bit_for_bit(options: dict[str, Any]) -> None:
    whole, half = Pair(**options), Pair(**options)
    train(whole, range(10))
    train(half, range(5))
    state = through_a_file(half.state_dict(), weights_only=True)
    resumed = Pair(**options)
    train(resumed, range(20, 23))
    assert resumed.load_state_dict(state) == ([], [])
    assert resumed.teacher.ema.run == half.teacher.ema.run
    train(resumed, range(5, 10))
    assert same(copied(resumed.teacher.module), copied(whole.teacher.module))
    assert same(copied(resumed.student), copied(whole.student))
    ours, theirs = resumed.teacher.ema, whole.teacher.ema
    assert (ours.step, ours.metrics()) == (theirs.step, theirs.metrics())
    for name, track in ours.tracks.items():
        assert track.profile.to_json() == theirs.tracks[name].profile.to_json()
        assert same(track.residuals, theirs.tracks[name].residuals)


def test_a_safetensors_file_takes_its_state(tmp_path: Path) -> None:
    save_file(
        {name: t.contiguous() for name, t in Pair().state_dict().items()}, tmp_path / "pair.safetensors"
    )


def test_other_schedules_and_damaged_states_are_refused_whole() -> None:
    pair, other = Pair(0.9), Pair(0.99)
    train(pair, range(3))
    before = copied(other.teacher.module)
    with pytest.raises(CheckpointError, match="Constant"):
        other.teacher.load_state_dict(pair.teacher.state_dict())
    damaged = {**pair.teacher.state_dict(), "_extra_state": torch.zeros(9, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match="not that of a polyak"):
        other.teacher.load_state_dict(damaged)
    short = {name: tensor for name, tensor in pair.teacher.state_dict().items() if name != "module.0.bias"}
    with pytest.raises(CheckpointError, match="bias: not in the state"):
        pair.teacher.load_state_dict(short)
    assert same(copied(other.teacher.module), before)
    assert other.teacher.ema.step == 0


def test_a_checkpoint_of_the_student_alone_leaves_the_teacher() -> None:
    pair = Pair()
    train(pair, range(3))
    before = copied(pair.teacher.module)
    alone = {f"student.{name}": torch.zeros_like(t) for name, t in pair.student.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"Missing key.*teacher.module.0.weight"):
        pair.load_state_dict(alone)
    pair.load_state_dict(alone, strict=False)
    assert same(copied(pair.teacher.module), before)
    assert pair.teacher.ema.step == 3


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_tensors_are_the_ones_that_move_on(assign: bool) -> None:
    source, pair = Pair(0.5), Pair(0.5)
    train(source, range(4))
    pair.load_state_dict(through_a_file(source.state_dict(), weights_only=True), assign=assign)
    train(source, range(4, 6))
    train(pair, range(4, 6))
    assert same(copied(pair.teacher.module), copied(source.teacher.module))


def test_its_answers_carry_no_gradient_and_serve_the_students_backward() -> None:
    pair = Pair()
    x = torch.randn(8, 3, requires_grad=True)
    target = pair.teacher(x)
    assert not target.requires_grad
    assert not target.is_inference()
    (pair.student(x.detach()) * target).sum().backward()
    assert x.grad is None
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    assert all(not parameter.requires_grad for parameter in pair.teacher.parameters())


class Passing(nn.Module):
    """Returns what it was given, beside something computed."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.recorded: list[bool] = []

    def forward(self, x: Tensor, *, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        self.recorded.append(torch.is_grad_enabled())
        return x, extra["y"], self.scale * x


def test_an_input_that_is_passed_through_is_cut_off_too() -> None:
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    teacher = Teacher(Passing())
    answers = teacher(x, extra={"y": y})
    assert teacher.module.recorded == [False]
    assert [answer.requires_grad for answer in answers] == [False] * 3


def test_it_answers_in_evaluation_mode_whatever_is_called() -> None:
    pair = Pair()
    train(pair, range(3))
    x, before = torch.randn(8, 3), copied(pair.teacher.module)
    wanted = pair.teacher.ema(x)
    pair.train()
    pair.teacher.train()
    assert not pair.teacher.training
    assert not any(module.training for module in pair.teacher.modules())
    assert pair.student.training
    for module in pair.modules():
        module.training = True
    assert torch.equal(pair.teacher(x), wanted)
    assert torch.equal(pair.teacher(x), wanted)
    assert same(copied(pair.teacher.module), before)


def test_it_is_never_trained() -> None:
    teacher = Pair().teacher
    assert teacher.requires_grad_(False) is teacher
    with pytest.raises(ConfigError, match=r"copy.deepcopy\(teacher.module\).requires_grad_\(True\)"):
        teacher.requires_grad_()
    free = copy.deepcopy(teacher.module).requires_grad_(True)
    assert all(parameter.requires_grad for parameter in free.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_parents_dtype_is_not_its_own_and_it_answers_before_and_after_the_next_update(
    dtype: torch.dtype,
) -> None:
    pair = Pair(0.5).eval()
    x = torch.randn(8, 3)
    wanted, weight = pair.teacher(x), pair.teacher.module[0].weight
    memory = weight.data_ptr()
    pair.to(dtype)
    for one in (weight, pair.teacher.module[0].weight):
        assert (one.dtype, one.data_ptr()) == (torch.float32, memory)
    close = {"rtol": 3e-2, "atol": 3e-2} if dtype.itemsize == 2 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(pair.teacher(x.to(dtype)).float(), wanted, **close)
    (pair.student(x.to(dtype)) - pair.teacher(x.to(dtype)).to(dtype)).square().mean().backward()
    with torch.no_grad():
        pair.student[4].bias.add_(1)
    pair.teacher.update()
    torch.testing.assert_close(pair.teacher(x.to(dtype)).float(), wanted + 0.5, **close)


def test_a_16_bit_student_that_is_partly_frozen_has_a_teacher_of_two_dtypes() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2)).bfloat16()
    teacher, x = Teacher(student), torch.randn(8, 3).bfloat16()
    assert {tensor.dtype for tensor in teacher.parameters()} == {torch.bfloat16, torch.float32}
    torch.testing.assert_close(teacher(x), student(x))


def test_a_slow_teacher_gives_no_warning_that_it_is_old() -> None:
    pair = Pair(0.9999)
    for _ in range(120):
        pair.teacher.update()
    pair.double()
    pair.teacher(torch.randn(8, 3))


def test_autocast_around_it_is_kept() -> None:
    pair = Pair()
    with torch.autocast("cpu", torch.bfloat16):
        assert pair.teacher(torch.randn(8, 3)).dtype == torch.bfloat16
    assert pair.teacher(torch.randn(8, 3)).dtype == torch.float32


def test_it_follows_a_student_whose_layers_are_exchanged() -> None:
    pair = Pair(0.5)
    pair.student[2] = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert "teacher.module.2.0.weight" in pair.state_dict()
    pair.student[0] = nn.Sequential(nn.Linear(3, 4))
    assert "teacher.module.0.0.weight" in dict(pair.named_parameters())
    pair.student[4] = nn.Linear(4, 1)
    with pytest.raises(polyak.PlanError, match=r"4\.weight is now"):
        pair.teacher(torch.randn(8, 3))
    pair.teacher.ema.reset("4.*")
    assert pair.teacher(torch.randn(8, 3)).shape == (8, 1)


def test_batch_statistics_answer_and_averaged_ones_are_kept() -> None:
    pair = Pair(batchnorm="batch")
    train(pair, range(3))
    x, before = torch.randn(16, 3) + 3, copied(pair.teacher.module)
    by_hand = copy.deepcopy(pair.teacher.module)
    by_hand[1].train()
    wanted = by_hand(x)
    assert not torch.equal(by_hand[1].running_mean, before["1.running_mean"])
    assert torch.equal(pair.teacher(x), wanted)
    assert same(copied(pair.teacher.module), before)
    assert not torch.allclose(pair.teacher.ema(x), wanted)
    average = Pair(batchnorm="average")
    train(average, range(3))
    assert torch.equal(average.teacher(x), average.teacher.ema(x))
    with pytest.raises(RuntimeError):
        pair.teacher(torch.ones(16, 9))
    assert torch.equal(pair.teacher.ema(x), pair.teacher.module(x))


def test_several_decays_and_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="a teacher is one average"):
        Teacher(network(), {"short": 0.9, "long": 0.99})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="a teacher is one average"):
        Teacher(network(), Adaptive(low=1, high=100))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="batchnorm='running'"):
        Teacher(network(), batchnorm="running")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="exclude='head"):
        Teacher(network(), exclude="head.*")
    with pytest.raises(ConfigError, match=r"nn\.Module"):
        Teacher([nn.Parameter(torch.ones(1))])  # pyright: ignore[reportArgumentType]


def test_a_teacher_of_a_part() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(3, 4), "head": nn.Linear(4, 2)})
    part = Teacher(model["encoder"], 0.5)
    assert part(torch.ones(1, 3)).shape == (1, 4)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    teacher = Teacher(model, 0.5, include="0.*")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    teacher.update()
    assert torch.equal(teacher.module[1].weight, model[1].weight)
    assert torch.allclose(teacher.module[0].weight, model[0].weight - 0.5)
    assert teacher.module[1].weight.data_ptr() != model[1].weight.data_ptr()


class SelfTaught(nn.Module):
    """A model that holds the teacher made of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.teacher: Any = None
        self.teacher = Teacher(self, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


EVERY_WAY = pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)


@EVERY_WAY
@pytest.mark.parametrize("make", [Pair, SelfTaught])
def test_a_copied_model_has_a_teacher_that_follows_the_copy(
    how: Callable[[Any], Any], make: Callable[[], Any]
) -> None:
    model = make()
    student = model.student if make is Pair else model
    with torch.no_grad():
        student.get_parameter(next(name for name, _ in student.named_parameters())).add_(1)
    model.teacher.update()
    before = copied(model)
    twin = how(model)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert same(copied(twin), before)
    follows = twin.student if make is Pair else twin
    assert twin.teacher.ema.model is follows
    x = torch.randn(8, 3)
    assert torch.equal(twin.teacher(x), model.teacher(x))
    with torch.no_grad():
        for parameter in follows.parameters():
            parameter.add_(1)
    twin.teacher.update()
    assert same(copied(model), before)
    assert not torch.equal(twin.teacher(x), model.teacher(x))
    assert (twin.teacher.ema.step, model.teacher.ema.step) == (2, 1)


@EVERY_WAY
def test_a_model_that_holds_an_ema_in_use_can_be_copied(how: Callable[[Any], Any]) -> None:
    model = network()
    model.ema = polyak.EMA(model, 0.5)
    model.ema.update()
    model.averaged = None
    assert model.ema.module is not model
    with model.ema.average_parameters():
        pass
    twin = how(model)
    assert twin.ema.model is twin
    assert twin.ema.step == 1


def test_a_model_is_neither_averaged_nor_copied_with_the_teacher_inside() -> None:
    model = SelfTaught()
    assert model.teacher.module.teacher is None
    assert set(model.teacher.ema.tracks["average"].tensors) == {
        name for name in model.state_dict() if name.startswith("net.") and "num_batches" not in name
    }
    assert len(list(model.parameters())) == 2 * len(list(model.net.parameters()))
    around = polyak.EMA(Pair(), 0.9)
    assert not any(name.startswith("teacher") for name in around.tracks["average"].tensors)


def test_a_compiled_student_leaves_no_trace_in_the_names() -> None:
    torch.manual_seed(0)
    parts = nn.Sequential(torch.compile(nn.Linear(3, 4), backend="eager"), nn.Linear(4, 2))
    teacher = Teacher(torch.compile(parts, backend="eager"), 0.5)
    plain = {"module.0.weight", "module.0.bias", "module.1.weight", "module.1.bias", "_extra_state"}
    assert set(teacher.state_dict()) == plain
    x = torch.randn(4, 3)
    teacher.update()
    torch.testing.assert_close(teacher(x), parts(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("batchnorm", ["average", "batch"])
def test_a_compiled_model_asks_the_teacher_inside_it(batchnorm: Any) -> None:
    torch._dynamo.reset()
    model = Pair(0.5, batchnorm=batchnorm)
    compiled = torch.compile(model, backend="eager")
    for _ in range(4):
        x = torch.randn(8, 3)
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
            for parameter in model.student.parameters():
                parameter.add_(0.1)
        model.teacher.update()
    torch._dynamo.reset()


def test_it_counts_the_steps_that_an_optimizer_takes() -> None:
    pair = Pair()
    optimizer = torch.optim.SGD(pair.student.parameters(), 0.1)
    handle = pair.teacher.attach(optimizer)
    for micro in range(8):
        pair(torch.randn(8, 3)).backward()
        if micro % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    assert pair.teacher.ema.step == 2
    with pytest.raises(ConfigError, match="attached"):
        pair.teacher.update()
    handle.remove()
    pair.teacher.update()


def test_a_step_that_a_scaler_skips_does_not_count() -> None:
    pair = Pair()
    optimizer = torch.optim.SGD(pair.student.parameters(), 0.1)
    pair.teacher.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(pair(torch.randn(8, 3)) * (torch.inf if step == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert pair.teacher.ema.step == 3


def test_while_another_average_is_in_the_student_it_is_listed_and_not_asked() -> None:
    pair = Pair()
    other = polyak.EMA(pair.student, 0.9)
    with other.average_parameters():
        assert len(list(pair.parameters())) == 12
        with pytest.raises(SwapError):
            pair.teacher(torch.randn(8, 3))
        with pytest.raises(SwapError):
            pair.state_dict()


class Large(nn.Module):
    """A megabyte of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


SIZE = 4 * 4 * 256 * 256


def test_beside_the_student_there_is_one_model(peak_bytes: Callable[..., int]) -> None:
    student, made = Large(), list[Any]()
    assert SIZE <= peak_bytes(lambda: made.append(Teacher(student, 0.9))) < 1.1 * SIZE
    teacher = made[0]

    def use() -> None:
        teacher(torch.ones(2, 256))
        teacher.update()
        teacher(torch.ones(2, 256))
        teacher.load_state_dict(teacher.state_dict())
        list(teacher.parameters())
        teacher(torch.ones(2, 256))

    assert peak_bytes(use) < 0.1 * SIZE
    pair = nn.ModuleDict({"student": student, "teacher": teacher})
    twins = list[Any]()
    assert peak_bytes(lambda: twins.append(copy.deepcopy(pair))) < 2.1 * SIZE
    assert peak_bytes(lambda: twins[0]["teacher"](torch.ones(2, 256))) < 0.1 * SIZE
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in twins[0].state_dict().values()
    }
    assert sum(held.values()) < 2.1 * SIZE


def digest(module: nn.Module) -> str:
    tensors = [
        t.detach().numpy().tobytes() for n, t in module.state_dict().items() if "_extra_state" not in n
    ]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)  # other weights in each process, until DDP sends those of the first
    model = Pair(0.5)
    with torch.no_grad():
        for parameter in (*model.student.parameters(), *model.teacher.parameters()):
            parameter.add_(rank)
    wrapped = nn.parallel.DistributedDataParallel(model)
    model.teacher.attach(optimizer := torch.optim.SGD(model.student.parameters(), 0.1))
    digests = [digest(model.teacher.module)]
    for step in range(4):
        torch.manual_seed(2 * step + rank)
        optimizer.zero_grad()
        wrapped(torch.randn(8, 3)).backward()
        optimizer.step()
        model.teacher.ema.synchronize_buffers()
        digests.append(digest(model.teacher.module))
    torch.save((digests, model.teacher.ema.step), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_one_teacher(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)  # pyright: ignore
    (one, steps), (two, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one == two
    assert len(set(one)) == 5
    assert steps == 4
