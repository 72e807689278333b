"""Hugging Face's Trainer really trains a tiny BERT, from scratch, on scikit-learn's digits as words."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

import polyak
from polyak.cli.describe import CheckpointSummary, describe
from tests.processes import check_it_kills_itself
from tests.shims import torchvision_without_ops
from tests.tensors import same

torchvision_without_ops()
os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback  # noqa: E402

from polyak.trainers.transformers import WeightAveraging  # noqa: E402

# What PEFT still asks of transformers.
pytestmark = [pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")]

digits = load_digits()
ROWS = [
    {"input_ids": torch.tensor(image).long(), "labels": int(label)}
    for image, label in zip(digits.data[:64], digits.target[:64], strict=True)
]


def bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=17, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, num_labels=10,
    )  # fmt: skip
    return BertForSequenceClassification(config)


class Watch(TrainerCallback):
    """Kills the process before a step; fails in an evaluation; remembers the weights evaluated."""

    def __init__(self, kill_at: int = -1, fail: bool = False) -> None:
        self.kill_at, self.fail, self.seen, self.heard = kill_at, fail, torch.tensor(0.0), 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen, self.heard = weight(kwargs["model"]), self.heard + 1
        if self.fail:
            raise RuntimeError("the evaluation failed")


def weight(model: Any) -> torch.Tensor:
    """The one tensor to recognise an average by."""
    return next(p for name, p in model.named_parameters() if "query" in name).detach().clone()


def trainer(folder: Path, *callbacks: Any, model: Any = None, **options: Any) -> Any:
    arguments: dict[str, Any] = {
        "max_steps": 12, "per_device_train_batch_size": 8, "use_cpu": True, "report_to": "none", "seed": 1,
        "learning_rate": 1e-2, "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return transformers.Trainer(
        model=model or bert(),
        args=transformers.TrainingArguments(str(folder), **{**arguments, **options}),
        train_dataset=ROWS,
        eval_dataset=ROWS[:16],
        callbacks=list(callbacks),
    )


def fit(folder: Path, kill_at: int = -1, resume: Any = None, model: Any = None) -> WeightAveraging:
    run = trainer(folder, Watch(kill_at), model=model, save_strategy="steps", save_steps=4)
    average = WeightAveraging(polyak.Warmup(0.99), every=3).attach(run)
    run.train(resume_from_checkpoint=resume)
    return average


def averages(ema: polyak.EMA) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in ema.tracks["average"].tensors.items()}


def roles(folder: Path) -> list[tuple[str, str, int | None]]:
    """What inspect says of the weights in a folder."""
    found = describe(folder)
    assert isinstance(found, CheckpointSummary)
    return [(one.name, one.role, found.step) for one in found.parts]


def test_a_killed_run_goes_on_to_the_same_average(tmp_path: Path) -> None:
    check_it_kills_itself(__name__, f"fit({tmp_path / 'killed'!r}, 7)")
    whole = fit(tmp_path / "whole")
    resumed = fit(tmp_path / "killed", resume=True)
    assert whole.ema.step == resumed.ema.step == 12
    assert same(averages(whole.ema), averages(resumed.ema))
    assert whole.ema.tracks["average"].profile == resumed.ema.tracks["average"].profile


def test_evaluation_is_on_the_average_and_training_on_the_raw_weights(tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(tmp_path, watch, eval_strategy="steps", eval_steps=6)
    average = WeightAveraging(0.9).attach(run)
    run.train()
    raw, mean = weight(run.model), weight(average.ema.module)
    assert not torch.equal(raw, mean)
    assert torch.equal(watch.seen, mean)
    for look in (run.evaluate, lambda: run.predict(ROWS[:16])):
        watch.seen = raw
        look()
        assert torch.equal(watch.seen, mean)
    assert torch.equal(weight(run.model), raw)
    assert average.ema.live == "raw"


@pytest.mark.parametrize("evaluate", ["long", "raw"])
def test_another_track_or_the_raw_weights_are_evaluated_on_request(evaluate: str, tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(tmp_path, watch)
    average = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=evaluate).attach(run)
    run.train()
    run.evaluate()
    expected = run.model if evaluate == "raw" else average.ema.module_of(evaluate)
    assert torch.equal(watch.seen, weight(expected))


def test_an_exception_in_an_evaluation_leaves_the_raw_weights(tmp_path: Path) -> None:
    watch = Watch(fail=True)
    run = trainer(tmp_path, watch, eval_strategy="steps", eval_steps=6)
    average = WeightAveraging(0.9).attach(run)
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        run.train()
    assert average.ema.live == "raw"
    assert torch.equal(watch.seen, weight(average.ema.module))
    assert not torch.equal(weight(run.model), watch.seen)
    run.optimizer.optimizer.step()  # nothing follows a run that is over
    assert average.ema.step == 6


def test_micro_batches_are_no_steps(tmp_path: Path) -> None:
    run = trainer(tmp_path, gradient_accumulation_steps=4, max_steps=3, per_device_train_batch_size=2)
    average = WeightAveraging(0.9).attach(run)
    run.train()
    assert average.ema.step == run.state.global_step == 3


def test_each_checkpoint_holds_both(tmp_path: Path) -> None:
    average = fit(tmp_path)
    folder = tmp_path / "checkpoint-12"
    raw = BertForSequenceClassification.from_pretrained(folder)
    mean = BertForSequenceClassification.from_pretrained(folder / "average")
    assert same(raw.state_dict(), average.ema.model.state_dict())
    assert same(mean.state_dict(), average.ema.module.state_dict())
    assert roles(folder / "average") == [("average", "average", 12)]
    average.save_pretrained(tmp_path / "out")
    assert same(
        BertForSequenceClassification.from_pretrained(tmp_path / "out").state_dict(), mean.state_dict()
    )


def test_a_report_shows_the_evaluations_of_both(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_strategy="steps", eval_steps=4, logging_strategy="steps", logging_steps=4)
    WeightAveraging(0.9, evaluate="both", report=True).attach(run)
    run.train()
    text = (tmp_path / "report.html").read_text()
    facts = json.loads(re.findall(r'id="facts">(.*?)</script>', text)[0])
    [plot] = [plot for plot in facts["plots"] if plot["title"] == "eval_loss"]
    logged = [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row]
    assert [line["label"] for line in plot["lines"]] == ["raw", "average"]
    assert plot["lines"][1]["y"] == pytest.approx(logged, rel=1e-5)
    assert "Constant(0.9)" in text


def test_the_best_model_is_the_best_average(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, eval_strategy="steps", save_strategy="steps", eval_steps=4, save_steps=4,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    average = WeightAveraging(0.9).attach(run)
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert best.name == "checkpoint-4", "of losses that fall the first is the greatest"
    assert average.ema.step == 4
    mean = BertForSequenceClassification.from_pretrained(best / "average")
    assert same(mean.state_dict(), average.ema.module.state_dict())
    assert run.evaluate()["eval_loss"] == run.state.best_metric

    run.save_model()
    assert same(
        BertForSequenceClassification.from_pretrained(tmp_path / "average").state_dict(), mean.state_dict()
    )
    assert roles(tmp_path / "average") == [("average", "average", 4)]
    assert roles(tmp_path) == [("raw", "raw", 4)]


def test_what_is_pushed_to_the_hub_holds_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: the upload, which is not the trainer's own, is looked at instead."""
    run = trainer(tmp_path)
    run.hub_model_id = "somebody/digits"
    run.args.push_to_hub = True
    average = WeightAveraging(0.9).attach(run)
    run.args.push_to_hub = False  # while it trains
    run.train()
    run.args.push_to_hub = True
    seen: list[Any] = []

    class Api:
        def upload_folder(self, folder_path: Path, **_: Any) -> None:
            seen.append((roles(Path(folder_path)), roles(Path(folder_path) / "average")))

    module = sys.modules["transformers.trainer"]
    monkeypatch.setattr(module, "hf_api", Api)
    monkeypatch.setattr(run, "create_model_card", lambda **_: None)
    run.save_model()
    assert seen == [([("raw", "raw", 12)], [("average", "average", 12)])]
    assert average.ema.step == 12


def test_a_model_is_not_saved_as_raw_while_it_holds_the_average(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    average = WeightAveraging(0.9).attach(run)
    run.train()
    with average.ema.average_parameters(), pytest.raises(polyak.SwapError, match="would be saved as the raw"):
        run.save_model()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_checkpoint_without_an_average_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=12)
    run.train()
    run = trainer(tmp_path, max_steps=16)
    WeightAveraging(0.9).attach(run)
    with pytest.raises(polyak.CheckpointError, match=r"checkpoint-12 holds no polyak\.safetensors"):
        run.train(resume_from_checkpoint=True)


def test_the_numbers_are_in_the_log(tmp_path: Path) -> None:
    run = trainer(tmp_path, logging_strategy="steps", logging_steps=6)
    average = WeightAveraging({"a": 0.9, "b": 0.5}).attach(run)
    with pytest.raises(polyak.PlanError, match="no average before"):
        average.ema  # noqa: B018
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logs) == 2
    assert logs[-1]["ema/a/decay"] == 0.9
    assert logs[-1]["ema/a/mean_age"] > logs[-1]["ema/b/mean_age"] > 0
    assert logs[-1]["ema/b/distance"] > 0
    assert logs[-1]["ema/skipped"] == 0


def adapted() -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2)
    return peft.get_peft_model(bert(), config)


def test_adapters_are_averaged_alone_and_exported_as_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    average = fit(tmp_path, model=adapted())
    names = averages(average.ema)
    assert names
    assert all("lora" in name or "classifier" in name for name in names)
    folder = tmp_path / "checkpoint-12" / "average"
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(os.listdir(folder)) == [*files, "adapter_model.safetensors.polyak.json"]
    assert roles(folder) == [("average", "average", 12)]
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    opened = peft.PeftModel.from_pretrained(bert(), folder)
    ids = torch.stack([row["input_ids"] for row in ROWS[:4]])
    with torch.no_grad():
        assert torch.equal(opened.eval()(ids).logits, average.ema.module(ids).logits)
    resumed = fit(tmp_path, resume=str(tmp_path / "checkpoint-8"), model=adapted())
    assert same(averages(resumed.ema), names)


def test_a_model_of_ones_own_is_saved_too(tmp_path: Path) -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = bert()

        def forward(self, input_ids: Any, labels: Any = None) -> Any:
            return self.inner(input_ids, labels=labels)

    run = trainer(tmp_path, model=Own())
    average = WeightAveraging(0.9).attach(run)
    run.train()
    average.save_pretrained(tmp_path / "out")
    saved = polyak.load(tmp_path / "out" / "model.safetensors")
    assert (saved.header.track, saved.header.step) == ("average", 12)


def sided(
    folder: Path, evaluate: Any, resume: Any = None, **options: Any
) -> tuple[Any, WeightAveraging, Any]:
    """Twelve steps of a BERT with dropout, evaluated every four on four batches."""
    watch = Watch()
    arguments = {
        "eval_strategy": "steps", "eval_steps": 4, "metric_for_best_model": "loss", "save_strategy": "steps",
        "save_steps": 4, "report_to": "tensorboard", "per_device_eval_batch_size": 4,
        "greater_is_better": False,
    }  # fmt: skip
    run = trainer(folder, watch, **{**arguments, **options})
    average = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=evaluate).attach(run)
    evaluated: list[float] = []
    inside = run.prediction_step

    def prediction_step(model: Any, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(weight(model).sum().item())
        return inside(model, *args, **kwargs)

    run.prediction_step = prediction_step
    run.train(resume_from_checkpoint=resume)
    return run, average, evaluated


def test_raw_and_averages_are_evaluated_once_each_and_have_a_best_folder_each(tmp_path: Path) -> None:
    run, average, evaluated = sided(tmp_path, ["short", "raw", "long"])
    [watch] = [one for one in run.callback_handler.callbacks if isinstance(one, Watch)]
    assert watch.heard == 3 * 4, "of the first kind"
    assert len(evaluated) == 3 * 3 * 4, "evaluations, kinds, batches"
    raw, long, short = evaluated[-12::4]
    assert raw == weight(run.model).sum().item()
    assert short == weight(average.ema.module_of("short")).sum().item()
    assert long == weight(average.ema.module_of("long")).sum().item()

    names = {"short": "eval_loss", "raw": "eval_raw/loss", "long": "eval_ema=long/loss"}
    log = [entry for entry in run.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in log] == [4, 8, 12]
    assert all(names.keys() and set(names.values()) <= entry.keys() for entry in log), "one entry has all"
    assert len({log[-1][name] for name in names.values()}) == 3
    shown = EventAccumulator(str(next(tmp_path.glob("runs/*")))).Reload()
    for weights, name in names.items():
        losses = [entry[name] for entry in log]
        tag = name.replace("eval_", "eval/")
        assert [event.value for event in shown.Scalars(tag)] == pytest.approx(losses)
        step = 4 * (1 + losses.index(min(losses)))
        folder = tmp_path / "best" / weights
        assert roles(folder)[0][0] == weights
        assert roles(folder)[0][2] == step
        best = BertForSequenceClassification.from_pretrained(folder)
        kept = tmp_path / f"checkpoint-{step}" / {"raw": "", "short": "average"}.get(weights, "")
        if weights != "long":
            assert same(best.state_dict(), BertForSequenceClassification.from_pretrained(kept).state_dict())


def test_a_resumed_run_knows_the_best_of_each_kind(tmp_path: Path) -> None:
    """By a metric that falls, of which the first is the greatest."""
    sided(tmp_path, "both", max_steps=8, greater_is_better=True)
    run, *_ = sided(tmp_path, "both", resume=True, greater_is_better=True)
    assert run.state.global_step == 12
    assert [roles(tmp_path / "best" / name)[0][2] for name in ("short", "raw")] == [4, 4]


def test_a_second_evaluation_changes_no_training(tmp_path: Path) -> None:
    once, average, _ = sided(tmp_path / "once", None)
    twice, averages, _ = sided(tmp_path / "twice", "both")
    assert same(once.model.state_dict(), twice.model.state_dict())
    assert same(average.ema.module.state_dict(), averages.ema.module.state_dict())
    assert not (tmp_path / "once" / "best").exists()
    logged = [[entry.get("eval_loss") for entry in run.state.log_history] for run in (once, twice)]
    assert logged[0] == logged[1]


def test_predicting_is_of_the_first_kind_alone(tmp_path: Path) -> None:
    run, average, evaluated = sided(tmp_path, "both", max_steps=1, eval_strategy="no", save_strategy="no")
    run.predict(ROWS[:16])
    assert evaluated == [weight(average.ema.module_of("short")).sum().item()] * 4
    evaluated.clear()
    metrics = run.evaluate()
    assert len(evaluated) == 2 * 4
    assert {"eval_loss", "eval_raw/loss"} <= metrics.keys()


def test_an_exception_in_the_second_evaluation_leaves_all_as_it_was(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_strategy="steps", eval_steps=6)
    average = WeightAveraging({"short": 0.5, "long": 0.9}, evaluate=["short", "long"]).attach(run)
    seen: list[torch.Tensor] = []

    def prediction_step(model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(weight(model))
        raise RuntimeError("the evaluation failed")

    run.prediction_step = prediction_step
    callbacks = [*run.callback_handler.callbacks]
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        run.train()
    assert torch.equal(seen[0], weight(average.ema.module_of("long")))
    assert average.ema.live == "raw"
    assert not torch.equal(weight(run.model), seen[0])
    assert run.callback_handler.callbacks == callbacks


def test_wrong_arguments_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        polyak.ConfigError, match="evaluate='wide': must be 'average', 'raw', 'both' or a list"
    ):
        WeightAveraging(0.9, evaluate="wide")


def test_a_callback_that_was_never_attached_is_refused(tmp_path: Path) -> None:
    with pytest.raises(polyak.ConfigError, match=r"WeightAveraging\(…\)\.attach\(trainer\)"):
        trainer(tmp_path, WeightAveraging(0.9)).train()


def test_a_trainer_that_will_shard_the_model_by_fsdps_first_version_is_refused(tmp_path: Path) -> None:
    kind = type(trainer(tmp_path).accelerator.distributed_type).FSDP  # which Accelerate has on no CPU
    plugin = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    run: Any = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=kind, state=plugin))
    with pytest.raises(polyak.ConfigError, match="distributed_type=FSDP is FSDP's first version"):
        WeightAveraging().attach(run)


class ScheduleFree(torch.optim.SGD):
    """The two switches of schedule-free optimizers: each moves the weights in place, once."""

    evaluates, switched = False, 0

    @torch.no_grad()
    def _move(self, factor: float) -> None:
        self.switched += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(factor)

    def eval(self) -> None:
        if not self.evaluates:
            self._move(2.0)
            self.evaluates = True

    def train(self) -> None:
        if self.evaluates:
            self._move(0.5)
            self.evaluates = False


def test_a_schedule_free_optimizer_moves_the_raw_weights_and_not_the_average(tmp_path: Path) -> None:
    """The trainer switches it inside its evaluation."""

    def trained(every: int) -> tuple[ScheduleFree, torch.Tensor, torch.Tensor, torch.Tensor]:
        model, watch = bert(), Watch()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):  # an evaluation draws from the same random numbers
                module.p = 0.0
        optimizer = ScheduleFree(model.parameters(), lr=0.01)
        run = trainer(tmp_path, watch, model=model, eval_strategy="steps", eval_steps=every)
        run.optimizer = optimizer
        average = WeightAveraging(0.9).attach(run)
        run.train()
        optimizer.train()
        return optimizer, weight(model), weight(average.ema.module), watch.seen

    often, seldom = trained(3), trained(12)
    assert often[0].switched > seldom[0].switched > 1
    assert torch.equal(often[1], seldom[1]), "factors of two are exact"
    assert torch.equal(often[2], seldom[2])
    assert torch.equal(often[3], often[2]), "the average was evaluated"


def test_start_may_be_a_share_of_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    average = WeightAveraging(0.9, start="25%").attach(run)
    run.train()
    assert average.ema.start == 3


def test_the_followed_track_is_evaluated_saved_and_resumed(tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(tmp_path, watch, eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4)
    average = WeightAveraging(polyak.Adaptive(low=1, high=100, points=3, smoothing=0.0)).attach(run)

    class Observe(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ema = average.ema
            assert torch.equal(watch.seen, weight(ema.module))
            best = "h1" if ema.following == "h10" else "h10"
            ema.observe({name: float(name == best) for name in ema.tracks})

    run.add_callback(Observe())
    run.train()
    assert (average.ema.following, average.ema.metrics()["switches"]) == ("h1", 3)
    average.save_pretrained(tmp_path / "average")
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "average")
    assert torch.equal(weight(saved), weight(average.ema.module_of("h1")))
    again = trainer(tmp_path, max_steps=12)
    resumed = WeightAveraging(polyak.Adaptive(low=1, high=100, points=3, smoothing=0.0)).attach(again)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert resumed.ema.following == "h1"
