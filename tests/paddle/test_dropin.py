"""Stand-ins beside their originals, on one training run; where the originals are wrong, what is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from polyak import CheckpointError, ConfigError
from polyak.dropin import paddle_clas, paddle_detection, paddle_ocr
from tests.paddle import originals

TYPES = ("threshold", "exponential", "normal")


class Net(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1D(8), nn.ReLU())
        self.head = nn.Linear(8, 2)
        self.register_buffer("seen", paddle.zeros([], dtype="int64"))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        self.seen.add_(paddle.ones([], dtype="int64"))
        return self.head(self.body(x))


class Run:
    """A training that averages can follow."""

    def __init__(self) -> None:
        paddle.seed(3)
        self.net = Net()
        self.batches = np.random.default_rng(5)
        self.optimizer = paddle.optimizer.Momentum(0.05, parameters=self.net.parameters())

    def step(self) -> None:
        batch = paddle.to_tensor(self.batches.normal(size=(16, 5)).astype("float32"))
        self.net(batch).square().mean().backward()
        self.optimizer.step()
        self.optimizer.clear_grad()


def apart(mine: dict[str, paddle.Tensor], theirs: dict[str, paddle.Tensor]) -> float:
    assert mine.keys() == theirs.keys()
    return max(
        float((mine[k].astype("float64") - theirs[k].astype("float64")).abs().max())
        for k in mine
        if k != "seen"
    )


def sums(
    run: Run, steps: int, kind: str, decay: float, tau: float = 2000
) -> tuple[dict[str, np.ndarray], float]:
    """vₜ as its definition says, in float64, and the sum of its weights; the steps of ``run`` are taken."""
    v = {k: np.zeros(t.shape) for k, t in run.net.state_dict().items()}
    rest = 1.0
    for s in range(steps):
        run.step()
        beta = {
            "threshold": min(decay, (1 + s) / (10 + s)),
            "exponential": decay * (1 - np.exp(-(s + 1) / tau)),
            "normal": decay,
        }[kind]
        rest *= beta
        for k, t in run.net.state_dict().items():
            v[k] = beta * v[k] + (1 - beta) * t.numpy()
    return v, 1 - rest


def exact(run: Run, steps: int, kind: str, decay: float) -> dict[str, np.ndarray]:
    """The average as its definition says."""
    v, whole = sums(run, steps, kind, decay)
    return {k: a / whole for k, a in v.items()}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("options", [{}, {"ema_black_list": ["head", "none"]}])
def test_the_sums_are_those_of_paddle_detection(kind: str, options: dict[str, object]) -> None:
    run = Run()
    run.net.head.bias.stop_gradient = True
    mine = paddle_detection.ModelEMA(run.net, 0.98, kind, **options)
    theirs = originals.model_ema()(run.net, 0.98, kind, **options)
    for _ in range(60):
        run.step()
        mine.update()
        theirs.update(run.net)
        frozen = {k: t for k, t in theirs.state_dict.items() if k != "head.bias"}  # theirs creeps up from 0
        assert apart({k: mine.state_dict[k] for k in frozen}, frozen) < 2e-6
    assert mine.step == theirs.step == 60


def test_constant_decays_are_corrected_as_there() -> None:
    run = Run()
    mine, theirs = (
        paddle_detection.ModelEMA(run.net, 0.98, "normal"),
        originals.model_ema()(run.net, 0.98, "normal"),
    )
    for _ in range(40):
        run.step()
        mine.update(run.net)
        theirs.update(run.net)
        assert apart(mine.apply(), theirs.apply()) < 2e-6
    assert mine.epoch == theirs.epoch == 40


def test_frozen_parameters_are_left_alone() -> None:
    """Where the original of 2.6.0 stops with an AttributeError."""
    run = Run()
    run.net.head.bias.stop_gradient = True
    with pytest.raises(AttributeError):
        originals.model_ema()(run.net, 0.98, ema_filter_no_grad=True)
    filtered = paddle_detection.ModelEMA(run.net, 0.98, ema_filter_no_grad=True)
    usual = paddle_detection.ModelEMA(run.net, 0.98)
    for _ in range(3):
        run.step()
        filtered.update()
        usual.update()
    assert apart(filtered.apply(), usual.apply()) == 0
    assert float((filtered.apply()["head.bias"] - run.net.head.bias).abs().max()) == 0


# "exponential" is wrong at first by the weight of the zeros; that is gone soon.
@pytest.mark.parametrize(("kind", "steps"), [("threshold", 5), ("exponential", 1), ("normal", 5)])
def test_the_average_is_what_its_weights_say_where_theirs_is_not(kind: str, steps: int) -> None:
    run, again = Run(), Run()
    mine = paddle_detection.ModelEMA(run.net, 0.98, kind)
    theirs = originals.model_ema()(run.net, 0.98, kind)
    for _ in range(steps):
        run.step()
        mine.update()
        theirs.update(run.net)
    right = {k: paddle.to_tensor(v) for k, v in exact(again, steps, kind, 0.98).items()}
    assert apart(mine.apply(), right) < 1e-6
    assert (apart(theirs.apply(), right) > 1e-4) == (kind != "normal")
    fixed = paddle_detection.corrected(theirs.apply(), steps, 0.98, kind)
    assert apart(fixed, right) < 1e-6


def test_counters_are_copied_and_before_the_first_update_it_is_the_model() -> None:
    run = Run()
    mine, theirs = paddle_detection.ModelEMA(run.net), originals.model_ema()(run.net)
    assert apart(mine.apply(), run.net.state_dict()) == 0
    assert float(theirs.apply()["head.weight"].abs().max()) == 0
    for _ in range(3):
        run.step()
        mine.update()
    assert mine.apply()["seen"].item() == 3
    assert mine.apply()["seen"].dtype == paddle.int64


@pytest.mark.parametrize("kind", TYPES)
def test_resuming_from_its_file_is_going_on(kind: str, tmp_path: Path) -> None:
    """Theirs divides what was divided already: at 0.98 and step 10 by 0.18."""
    run = Run()
    whole = paddle_detection.ModelEMA(run.net, 0.98, kind)
    for _ in range(10):
        run.step()
        whole.update()
    paddle.save(whole.apply(), str(tmp_path / "10.pdparams"))
    resumed, theirs = (
        paddle_detection.ModelEMA(run.net, 0.98, kind),
        originals.model_ema()(run.net, 0.98, kind),
    )
    resumed.resume(paddle.load(str(tmp_path / "10.pdparams")), 10)
    theirs.resume(paddle.load(str(tmp_path / "10.pdparams")), 10)
    assert apart(theirs.state_dict, whole.apply()) < 1e-6, "the original takes the file"
    for _ in range(10):
        run.step()
        for one in (whole, resumed, theirs):
            one.update(run.net)
    assert apart(resumed.apply(), whole.apply()) < 1e-6
    assert resumed.step == 20
    if kind == "normal":
        assert apart(theirs.apply(), whole.apply()) > 0.1


def test_what_resume_refuses_changes_nothing() -> None:
    run = Run()
    ema = paddle_detection.ModelEMA(run.net, 0.9)
    ema.update()
    before = {k: v.clone() for k, v in ema.apply().items()}
    with pytest.raises(CheckpointError, match=r"resume: body\.0\.weight, .*not in the state"):
        ema.resume({"head.weight": run.net.head.weight}, 5)
    assert apart(ema.apply(), before) == 0
    assert ema.step == 1


def test_a_cycle_begins_anew() -> None:
    run = Run()
    ema = paddle_detection.ModelEMA(run.net, 0.9, "normal", cycle_epoch=2)
    for epoch in (1, 2):
        run.step()
        ema.update()
        ema.apply()
        assert ema.step == (1 if epoch == 1 else 0)
    run.step()
    ema.update()
    assert apart(ema.apply(), run.net.state_dict()) < 1e-6


def test_what_is_refused() -> None:
    run = Run()
    with pytest.raises(ConfigError, match=r'ema_decay_type=.cosine.: must be "threshold", "exponential"'):
        paddle_detection.ModelEMA(run.net, 0.9, "cosine")
    with pytest.raises(ConfigError, match="not the averaged model"):
        paddle_detection.ModelEMA(run.net).update(Net())
    with pytest.raises(ConfigError, match="not the averaged model"):
        paddle_clas.ExponentialMovingAverage(run.net).update(Net())


def test_it_is_the_average_of_paddle_clas() -> None:
    run = Run()
    mine = paddle_clas.ExponentialMovingAverage(run.net, 0.9)
    theirs = originals.exponential_moving_average()(run.net, 0.9)
    x = paddle.randn([4, 5])
    for _ in range(20):
        run.step()
        mine.update(run.net)
        for k, v in theirs.module.state_dict().items():  # theirs cannot average integers
            v.set_value(run.net.state_dict()[k] if k == "seen" else 0.9 * v + 0.1 * run.net.state_dict()[k])
        assert apart(dict(mine.module.state_dict()), dict(theirs.module.state_dict())) < 2e-6
    assert not mine.module.training
    assert float((mine.module(x) - theirs.module(x)).abs().max()) < 1e-5
    run.step()
    mine.set(run.net)
    theirs.set(run.net)
    assert apart(dict(mine.module.state_dict()), dict(theirs.module.state_dict())) == 0


def test_without_integers_it_steps_beside_paddle_clas() -> None:
    net = nn.Linear(3, 2)
    mine, theirs = (
        paddle_clas.ExponentialMovingAverage(net, 0.9),
        originals.exponential_moving_average()(net, 0.9),
    )
    for _ in range(20):
        net.weight.set_value(net.weight + paddle.randn([3, 2]))
        mine.update(net)
        theirs.update(net)
        assert apart(dict(mine.module.state_dict()), dict(theirs.module.state_dict())) < 2e-6


# --- PaddleOCR ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_the_sums_and_averages_of_paddle_ocr(kind: str, tmp_path: Path) -> None:
    """Its file holds the sums themselves, so nothing is divided twice when a run resumes."""
    run, beside = Run(), Run()
    ema = paddle_ocr.ModelEMA(run.net, 0.98, 10, kind)
    assert apart(ema.apply(), run.net.state_dict()) == 0
    for _ in range(7):
        run.step()
        ema.update(run.net)
    v, whole = sums(beside, 7, kind, 0.98, tau=10)
    saved = ema.state_dict_for_save()
    assert saved["step"] == ema.step == 7
    assert apart(saved["ema_state"], {k: paddle.to_tensor(a) for k, a in v.items()}) < 1e-6
    assert apart(ema.apply(), {k: paddle.to_tensor(a / whole) for k, a in v.items()}) < 1e-6
    assert ema.apply()["seen"].item() == 7
    paddle.save(saved, str(tmp_path / "latest.pdema"))
    theirs = {**paddle.load(str(tmp_path / "latest.pdema"))["ema_state"]}
    theirs["seen"] = paddle.zeros([])  # the original sums whole numbers too, in float32
    resumed = paddle_ocr.ModelEMA(run.net, 0.98, 10, kind)
    resumed.set_state_dict({"ema_state": theirs, "step": 7})
    for _ in range(5):
        run.step()
        for one in (ema, resumed):
            one.update(run.net)
    assert apart(resumed.apply(), ema.apply()) == 0
    assert resumed.step == 12


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"head.weight": 1}, r"'head\.weight' given; must hold 'ema_state' and 'step'"),
        ({"ema_state": {}, "step": 3}, r"set_state_dict: body\.0\.weight, .*not in the state"),
    ],
)
def test_a_state_of_something_else_changes_nothing(state: dict[str, object], says: str) -> None:
    run = Run()
    ema = paddle_ocr.ModelEMA(run.net, ema_filter_no_grad=True)
    run.step()
    ema.update(run.net)
    before = {k: v.clone() for k, v in ema.apply().items()}
    with pytest.raises(CheckpointError, match=says):
        ema.set_state_dict(state)
    assert ema.step == 1
    assert apart(ema.apply(), before) == 0


def test_gamma_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="gamma=0: must be positive"):
        paddle_ocr.ModelEMA(Run().net, gamma=0)


# --- wrapped ------------------------------------------------------------------------------------------

CLASSES = {
    "clas": paddle_clas.ExponentialMovingAverage,
    "detection": paddle_detection.ModelEMA,
    "ocr": paddle_ocr.ModelEMA,
}


@pytest.mark.filterwarnings("ignore:The program will return to single-card operation")
@pytest.mark.parametrize("wrapped_first", [False, True], ids=["made, then wrapped", "wrapped, then made"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_model_is_the_same_wrapped_or_not(kind: str, wrapped_first: bool) -> None:
    """Their engines make the average, wrap the model for several GPUs, and update with what is wrapped."""
    layer, alone = nn.Linear(4, 2), nn.Linear(4, 2)
    alone.set_state_dict(layer.state_dict())
    given, later = (paddle.DataParallel(layer), layer)[:: 1 if wrapped_first else -1]
    ema, expected = CLASSES[kind](given, decay=0.9), CLASSES[kind](alone, decay=0.9)
    for value in (1.0, 3.0):
        for one in (layer, alone):
            one.weight.set_value(paddle.full([4, 2], value))
        ema.update(later)
        expected.update(alone)

    def tensors(one: object) -> dict[str, paddle.Tensor]:
        return dict(one.module.state_dict()) if kind == "clas" else one.apply()  # type: ignore[attr-defined]

    assert apart(tensors(ema), tensors(expected)) == 0
    if kind == "clas":
        ema.set(later)
        assert float(ema.module.weight.mean()) == 3
    with pytest.raises(ConfigError, match="not the averaged model"):
        ema.update(paddle.DataParallel(alone))
