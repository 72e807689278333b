"""`polyak` as a person runs it: another process, its output and its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.command_line import polyak, polyak_process


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).with_name("polyak")
    shown = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"polyak {version('polyak')}\n"


def test_help_fits_one_screen_and_lists_every_command() -> None:
    shown = polyak("--help")
    assert shown.returncode == 0
    assert len(shown.stdout.rstrip().splitlines()) <= 24
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "demo" in shown.stdout


def test_demo_help_names_every_option() -> None:
    shown = polyak("demo", "--help").stdout
    for option in (
        "--data", "--root", "--epochs", "--lr", "--decay", "--warmup", "--no-warmup", "--seed", "--device",
        "--out", "--score",
    ):  # fmt: skip
        assert option in shown, option


def test_help_needs_no_framework() -> None:
    for command in (["--help"], ["demo", "--help"]):
        assert polyak_process(*command, block="torch").returncode == 0


@pytest.mark.parametrize("package", ["torch", "pooch", "sklearn", "matplotlib"])
def test_a_missing_extra_answers_with_its_pip_line(package: str, tmp_path: Path, warm_path: str) -> None:
    line = ["demo", "--data", "digits" if package == "sklearn" else "auto", "--root", tmp_path]
    answer = polyak_process(*line, block=package, cwd=tmp_path, PATH=warm_path)
    assert answer.returncode == 1
    assert answer.stderr == (
        f'polyak: {package} is not installed. Install it with: pip install "polyak[demo]"\n'
    )
    assert list(tmp_path.iterdir()) == []


def test_any_other_missing_module_keeps_its_traceback() -> None:
    answer = polyak_process("demo", "--data", "digits", block="ml_dtypes")
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decay", "2"], "beta=2"),
        (["--device", "toaster"], "device='toaster' cannot be used here"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    answer = polyak("demo", *arguments, cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("polyak: ")
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--data", "imagenet"], "is not one of 'auto', 'fashion-mnist', 'cifar10', 'digits'"),
        (["demo", "--lr", "linear"], "'linear' is not one of 'constant', 'cosine'"),
        (["demo", "--framework", "jax"], "'jax' is not one of 'auto', 'torch', 'paddle'"),
        (["demo", "--epochs", "0"], "should be greater than or equal to 1"),
        (["demo", "--root", "nowhere"], "'nowhere' does not exist"),
        (["average", "--shape", "square"], "'square' is not one of 'linear', 'cosine', '1-sqrt'"),
        (["average", "--dtype", "int4"], "'int4' is not one of 'float64', 'float32', 'float16', 'bfloat16'"),
        (["average", "--accumulate", "int"], "'int' is not one of 'float32', 'float64'"),
        (["synthesize", "--shape", "round"], "'round' is not one of 'linear', 'cosine'"),
        (["gate", "--mode", "most"], "'most' is not one of 'max', 'min'"),
        (["sweep", "--mode", "most"], "'most' is not one of 'max', 'min'"),
    ],
)
def test_a_value_outside_its_choices_is_a_usage_error(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    answer = polyak(*arguments)
    assert answer.returncode == 2
    assert message in " ".join(answer.stderr.replace("│", " ").split())


def test_a_run_ends_with_the_table(tmp_path: Path) -> None:
    done = polyak("demo", "--data", "digits", "--epochs", "2", "--no-warmup", "--decay", "0.9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in (
        "2 epochs on cpu, seed 0",
        "learning rate constant; decay 0.9: a half-life of 7 steps after the first epoch, 7 after the last",
        "EMA loss",
        "EMA accuracy",
        "best accuracy",
        "last accuracy",
        "wobble of the accuracy",
        "Without averaging this run would have",
        "With --lr cosine the falling learning rate does the averaging.",
        "of the training time",
        "accuracy: ○ raw, ● average",
        "wrote runs/demo-1: average.safetensors, curves.png, metrics.jsonl, polyak-run.json, report.html, "
        "snapshots",
        "open runs/demo-1/report.html in a browser",
        "polyak inspect runs/demo-1/average.safetensors --plot",
        "polyak doctor your_train.py",
    ):
        assert words in done.stdout, words
    assert (tmp_path / "runs/demo-1/average.safetensors").exists()


def test_json_is_all_that_is_printed(tmp_path: Path) -> None:
    done = polyak("demo", "--data", "digits", "--epochs", "1", "--json", "--out", "run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert (figures["folder"], figures["epochs"]) == ("run", 1)
    assert 0 < figures["ema"]["last"] < 1


def test_ctrl_c_leaves_a_usable_run(tmp_path: Path, warm_path: str) -> None:
    command = ["polyak", "demo", "--data", "digits", "--epochs", "100000", "--out", str(tmp_path / "run")]
    environment = os.environ | {"PATH": warm_path}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    try:
        while (
            not metrics.exists() or len(metrics.read_text().splitlines()) < 9
        ):  # two epochs have four lines each
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == ""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    epochs = sum(line["kind"] == "epoch" for line in lines)
    assert epochs >= 2
    assert f"after {epochs} epochs" in out
    assert f"{lines[-1]['step']}/2300000" in out
    average = load_file(tmp_path / "run" / "average.safetensors")
    assert sum(tensor.size for tensor in average.values()) == 62_006
    left = [
        *("average.safetensors", "curves.png", "metrics.jsonl"),
        *("polyak-run.json", "report.html", "snapshots"),
    ]
    assert [path.name for path in sorted(metrics.parent.iterdir())] == left


def test_ctrl_c_before_anything_began_is_quiet(tmp_path: Path, warm_path: str) -> None:
    code = (
        "import signal, polyak.demo.data as data; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "data.load = lambda *_: signal.raise_signal(signal.SIGINT); "
    )
    command = ["python", "-c", code + "from polyak.cli import main; main()", "demo", "--data", "digits"]
    environment = os.environ | {"PATH": warm_path}
    answer = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert answer.returncode == 130
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []
