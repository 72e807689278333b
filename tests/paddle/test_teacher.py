"""``polyak.paddle.Teacher``: an average as a layer, beside its student in the model that holds both."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

import polyak
from polyak import Adaptive, CheckpointError, ConfigError, SwapError
from polyak.paddle import EMA, Teacher

from .conftest import array, fill

pytestmark = pytest.mark.filterwarnings("ignore:When training, we now always track:UserWarning")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1D(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))


class Pair(nn.Layer):
    """A student and its teacher, as self-distillation has them."""

    def __init__(self, decay: Any = 0.9, **options: Any) -> None:
        super().__init__()
        paddle.seed(0)
        self.student = network()
        self.teacher = Teacher(self.student, decay, **options)

    def forward(self, x: Tensor) -> Tensor:
        return (self.student(x + 0.1) - self.teacher(x)).square().mean() + self.student(x).square().mean()


def train(pair: Any, steps: range) -> None:
    optimizer = paddle.optimizer.SGD(0.1, parameters=pair.student.parameters())
    for step in steps:
        paddle.seed(step)
        pair(paddle.randn([8, 3])).backward()
        optimizer.step()
        optimizer.clear_grad()
        pair.teacher.update()


def arrays(layer: nn.Layer) -> dict[str, np.ndarray]:
    return {name: array(tensor) for name, tensor in layer.state_dict().items() if "_extra_state" not in name}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_it_is_the_recursion_under_the_names_of_a_layer() -> None:
    pair = Pair(0.75)
    wanted = arrays(pair.student)
    for step in range(6):
        train(pair, range(step, step + 1))
        for name, value in arrays(pair.student).items():
            wanted[name] = 0.75 * wanted[name] + 0.25 * value
    held = pair.teacher.state_dict()
    assert held.keys() == {f"module.{name}" for name in wanted} | {"_extra_state"}
    for name, value in wanted.items():
        np.testing.assert_allclose(array(held[f"module.{name}"]), value, rtol=1e-5, atol=1e-6)
    assert pair.teacher.ema.step == 6
    assert {name.partition(".")[0] for name in pair.state_dict()} == {"student", "teacher"}
    assert len(pair.parameters()) == 2 * len(pair.student.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decay": polyak.Cosine(0.9, 1.0, total=12)},
        {"batchnorm": "batch"},
        {"compensated": True},
        {"every": 4, "start": 2},
        {"include": "0.*"},
    ],
    ids=str,
)
def test_one_file_of_the_model_that_holds_both_resumes_bit_for_bit(
    options: dict[str, Any], tmp_path: Path
) -> None:
    whole, half = Pair(**options), Pair(**options)
    train(whole, range(10))
    train(half, range(5))
    paddle.save(half.state_dict(), str(tmp_path / "last.pdparams"))
    resumed = Pair(**options)
    train(resumed, range(20, 23))
    assert resumed.set_state_dict(paddle.load(str(tmp_path / "last.pdparams"))) == ([], [])
    train(resumed, range(5, 10))
    assert same(arrays(resumed), arrays(whole))
    ours, theirs = resumed.teacher.ema, whole.teacher.ema
    assert (ours.step, ours.metrics()) == (theirs.step, theirs.metrics())
    assert ours.tracks["average"].profile == theirs.tracks["average"].profile


def test_another_schedule_is_refused() -> None:
    pair, other = Pair(0.9), Pair(0.99)
    train(pair, range(3))
    with pytest.raises(CheckpointError, match="Constant"):
        other.set_state_dict(pair.state_dict())
    assert other.teacher.ema.step == 0


def test_a_model_with_a_teacher_is_exported_without_its_counters(tmp_path: Path) -> None:
    assert "_extra_state" not in Pair().teacher.to_static_state_dict()


def test_its_answers_carry_no_gradient_and_serve_the_students_backward() -> None:
    pair = Pair()
    x = paddle.randn([8, 3])
    x.stop_gradient = False
    target = pair.teacher(x)
    assert target.stop_gradient
    (pair.student(x.detach()) * target).sum().backward()
    assert x.grad is None
    assert all(p.grad is None and p.stop_gradient for p in pair.teacher.parameters())


class Passing(nn.Layer):
    """Returns what it was given, beside something computed."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.create_parameter([1])

    def forward(self, x: Tensor, extra: dict[str, Tensor]) -> tuple[Any, ...]:
        return x, extra["y"], self.scale * x, paddle.is_grad_enabled()


def test_an_input_that_is_passed_through_is_cut_off_too() -> None:
    x, y = paddle.ones([2]), paddle.ones([2])
    x.stop_gradient = y.stop_gradient = False
    *answers, recorded = Teacher(Passing())(x, extra={"y": y})
    assert [answer.stop_gradient for answer in answers] == [True] * 3
    assert not recorded


def test_it_answers_in_evaluation_mode_whatever_is_called() -> None:
    pair = Pair()
    train(pair, range(3))
    x, before = paddle.randn([8, 3]), arrays(pair.teacher.module)
    wanted = array(pair.teacher.ema(x))
    pair.train()
    pair.teacher.train()
    np.testing.assert_array_equal(array(pair.teacher(x)), wanted)
    np.testing.assert_array_equal(array(pair.teacher(x)), wanted)
    assert same(arrays(pair.teacher.module), before)
    assert pair.student.training
    with pytest.raises(ConfigError, match="never trained"):
        pair.teacher.requires_grad_()


def test_a_parents_dtype_is_not_its_own_and_it_answers_before_and_after_the_next_update() -> None:
    pair = Pair(0.5)
    pair.eval()
    x = paddle.randn([8, 3])
    wanted, weight = array(pair.teacher(x)), pair.teacher.module[0].weight
    memory = weight.data_ptr()
    pair.to(dtype="bfloat16")
    for one in (weight, pair.teacher.module[0].weight):
        assert (one.dtype, one.data_ptr()) == (paddle.float32, memory)
    np.testing.assert_allclose(array(pair.teacher(x.astype("bfloat16"))), wanted, atol=3e-2)
    fill(pair.student[4].bias, 1)
    pair.teacher.update()
    np.testing.assert_allclose(array(pair.teacher(x.astype("bfloat16"))), wanted + 0.5, atol=3e-2)


def test_batch_statistics_answer_and_averaged_ones_are_kept() -> None:
    pair = Pair(batchnorm="batch")
    train(pair, range(3))
    x, before = paddle.randn([16, 3]) + 3, arrays(pair.teacher.module)
    by_hand = copy.deepcopy(layer := pair.teacher.module)
    by_hand[1].train()
    with paddle.no_grad():
        wanted = array(by_hand(x))
    np.testing.assert_array_equal(array(pair.teacher(x)), wanted)
    assert same(arrays(layer), before)
    assert pair.teacher.module is layer
    assert not np.allclose(array(pair.teacher.ema(x)), wanted)
    with pytest.raises(ValueError):
        pair.teacher(paddle.ones([16, 9]))
    assert same(arrays(pair.teacher.module), before)
    assert not pair.teacher.module[1].training
    average = Pair()
    np.testing.assert_array_equal(array(average.teacher(x)), array(average.teacher.ema(x)))


def test_several_decays_and_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="a teacher is one average"):
        Teacher(network(), {"short": 0.9, "long": 0.99})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="a teacher is one average"):
        Teacher(network(), Adaptive(low=1, high=100))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="batchnorm='running'"):
        Teacher(network(), batchnorm="running")  # pyright: ignore[reportArgumentType]


class SelfTaught(nn.Layer):
    """A model that holds the teacher made of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.teacher = Teacher(self, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("make", [Pair, SelfTaught])
def test_a_copied_model_has_a_teacher_that_follows_the_copy(
    how: Callable[[Any], Any], make: Callable[[], Any]
) -> None:
    model = make()
    fill((model.student if make is Pair else model.net)[4].bias, 1)
    model.teacher.update()
    model.eval()
    before = arrays(model)
    twin = how(model)
    assert len(twin.parameters()) == len(model.parameters())
    assert same(arrays(twin), before)
    assert twin.teacher.ema.model is (twin.student if make is Pair else twin)
    x = paddle.randn([8, 3])
    np.testing.assert_array_equal(array(twin.teacher(x)), array(model.teacher(x)))
    fill((twin.student if make is Pair else twin.net)[4].bias, 5)
    twin.teacher.update()
    assert same(arrays(model), before)
    assert (twin.teacher.ema.step, model.teacher.ema.step) == (2, 1)
    assert not np.array_equal(array(twin.teacher(x)), array(model.teacher(x)))


def test_a_layer_that_holds_an_ema_in_use_can_be_copied() -> None:
    layer = network()
    layer.ema = EMA(layer, 0.5)
    layer.ema.update()
    assert layer.ema.module is not layer
    twin = copy.deepcopy(layer)
    assert twin.ema.model is twin
    assert twin.ema.step == 1


def test_it_counts_the_steps_that_an_optimizer_takes() -> None:
    pair = Pair()
    optimizer = paddle.optimizer.SGD(0.1, parameters=pair.student.parameters())
    handle = pair.teacher.attach(optimizer)
    for micro in range(8):
        pair(paddle.randn([8, 3])).backward()
        if micro % 4 == 3:
            optimizer.step()
            optimizer.clear_grad()
    assert pair.teacher.ema.step == 2
    handle.remove()
    pair.teacher.update()


def test_while_another_average_is_in_the_student_it_is_listed_and_not_asked() -> None:
    pair = Pair()
    with EMA(pair.student, 0.9).average_parameters():
        assert len(pair.parameters()) == 16
        with pytest.raises(SwapError):
            pair.teacher(paddle.randn([8, 3]))


def test_beside_the_student_there_is_one_model() -> None:
    student = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    pair = nn.LayerList([student, Teacher(student)])
    pair[1](paddle.ones([1, 512]))
    pair[1].update()
    kept = {*pair[1].ema.tracks["average"].tensors.values()}
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in pair[1].parameters()}
    size = sum(array(t).nbytes for t in student.parameters()) // 2
    assert 2 * size < len(pickle.dumps(pair)) < 2.1 * size
