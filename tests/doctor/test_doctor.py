"""The mistakes people make, each found at its line; and what is right, left alone."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent, indent

import pytest

from polyak.doctor import examine
from polyak.errors import ConfigError
from tests.command_line import Done, polyak

HEAD = """
import torch
from timm.utils import ModelEmaV3
from torch_ema import ExponentialMovingAverage
import polyak

model = make()
optimizer = torch.optim.AdamW(model.parameters())
scaler = torch.amp.GradScaler()
"""


def found(folder: Path, body: str, head: str = HEAD) -> list[tuple[str, str]]:
    """Each finding as its check and the text of its line."""
    path = folder / "train.py"
    path.write_text(head + dedent(body))
    lines = path.read_text().splitlines()
    return [(finding.check, lines[finding.line - 1].strip()) for finding in examine(path).findings]


def looped(*lines: str, before: str = "ema = ModelEmaV3(model)") -> str:
    return (
        before
        + "\nfor i, batch in enumerate(loader):\n    loss = model(batch)\n"
        + indent("\n".join(lines), "    ")
    )


UPDATE = "ema.update(model)"
MISTAKES = {
    "never-updated": ("ema = polyak.EMA(model, 0.999)", "ema = polyak.EMA(model, 0.999)"),
    "update-before-step": (looped(UPDATE, "optimizer.step()"), UPDATE),
    "update-per-micro-batch": (looped("if (i + 1) % 4 == 0:", "    optimizer.step()", UPDATE), UPDATE),
    "update-on-skipped-step": (looped("scaler.step(optimizer)", "scaler.update()", UPDATE), UPDATE),
    "not-restored": (
        looped(
            "optimizer.step()",
            "ema.update()",
            "if i % 100 == 0:",
            "    ema.store()",
            "    ema.copy_to()",
            "    evaluate(model)",
            before="ema = ExponentialMovingAverage(model.parameters(), decay=0.99)",
        ),
        "ema.copy_to()",
    ),
    "restore-not-in-finally": (
        looped(
            "optimizer.step()",
            "ema.update()",
            "ema.apply_shadow()",
            "evaluate(model)",
            "ema.restore()",
            before="ema = MyEMA(model, 0.99)",
        ),
        "ema.apply_shadow()",
    ),
    "made-before-moving": (
        "ema = ModelEmaV3(model)\nmodel = model.to(device)\n" + looped("optimizer.step()", UPDATE, before=""),
        "ema = ModelEmaV3(model)",
    ),
    "half-precision": (
        "model.to(torch.bfloat16)\nema = ExponentialMovingAverage(model.parameters(), 0.999)\n"
        + looped("optimizer.step()", "ema.update()", before=""),
        "ema = ExponentialMovingAverage(model.parameters(), 0.999)",
    ),
    "state-not-saved": (
        looped("optimizer.step()", UPDATE, 'torch.save({"o": optimizer.state_dict()}, "last.pt")'),
        'torch.save({"o": optimizer.state_dict()}, "last.pt")',
    ),
}


@pytest.mark.parametrize("check", MISTAKES)
def test_a_mistake_is_found_at_its_line(tmp_path: Path, check: str) -> None:
    body, line = MISTAKES[check]
    assert found(tmp_path, body) == [(check, line)]


RIGHT = {
    "plain": looped("optimizer.step()", UPDATE),
    "accumulated": looped("if (i + 1) % 4 == 0:", "    optimizer.step()", "    ema.update(model)"),
    "attached": looped("optimizer.step()", before="ema = polyak.EMA(model)\nema.attach(optimizer)"),
    "attached, scaled": looped(
        "scaler.step(optimizer)", before="ema = polyak.EMA(model)\nema.attach(optimizer)"
    ),
    "scaled, asked": looped(
        "scaler.step(optimizer)", "if scaler.get_scale() >= scale:", "    ema.update(model)"
    ),
    "block": looped(
        "optimizer.step()",
        "ema.update()",
        "with ema.average_parameters():",
        "    evaluate(model)",
        before="ema = polyak.EMA(model)",
    ),
    "finally": looped(
        "optimizer.step()",
        "ema.update()",
        "ema.store()",
        "try:",
        "    ema.copy_to()",
        "    evaluate(model)",
        "finally:",
        "    ema.restore()",
        before="ema = ExponentialMovingAverage(model.parameters(), decay=0.99)",
    ),
    "trained on at once": looped(
        "optimizer.step()",
        "ema.update()",
        "if i % 100 == 0:",
        "    ema.copy_to()",
        before="ema = polyak.EMA(model)",
    ),
    "for good, at the end": looped("optimizer.step()", "ema.update()", before="ema = polyak.EMA(model)")
    + "\nema.copy_to()\n",
    "into another model": looped(
        "optimizer.step()", "ema.update()", "ema.copy_to(other)", before="ema = polyak.EMA(model)"
    ),
    "moved first": "model = model.to(device)\n" + looped("optimizer.step()", UPDATE),
    "polyak follows": "ema = polyak.EMA(model)\nmodel.to(device)\n"
    + looped("optimizer.step()", "ema.update()", before=""),
    "polyak in 16 bits": "model.bfloat16()\n"
    + looped("optimizer.step()", "ema.update()", before="ema = polyak.EMA(model)"),
    "saved": looped(
        "optimizer.step()", UPDATE, "torch.save([optimizer.state_dict(), ema.state_dict()], 'last.pt')"
    ),
    "registered": looped("optimizer.step()", UPDATE, "optimizer.state_dict()")
    + "\naccelerator.register_for_checkpointing(ema)\n",
    "handed on": "ema = ModelEmaV3(model)\ntrain(model, ema)\n",
    "no average": "optimizer.step()\n",
    "another thing's update": looped("progress.update(1)", "optimizer.step()", UPDATE),
    "a schedule once an epoch": """
rate = torch.optim.lr_scheduler.LinearLR(optimizer)
ema = ModelEmaV3(model)
for epoch in range(3):
    for batch in loader:
        optimizer.step()
    ema.update(model)
    rate.step()
""",
    "torch's last schedule": """
from torch.optim.swa_utils import SWALR
late = SWALR(optimizer, 0.1)
ema = ModelEmaV3(model)
for epoch in range(3):
    for batch in loader:
        optimizer.step()
    ema.update(model)
    late.step()
""",
    "once an epoch": """
ema = ModelEmaV3(model)
for epoch in range(3):
    for batch in loader:
        optimizer.step()
    ema.update(model)
""",
}


@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right_is_left_alone(tmp_path: Path, what: str) -> None:
    assert found(tmp_path, RIGHT[what]) == []


def test_averages_in_attributes_and_functions_are_seen(tmp_path: Path) -> None:
    body = """
    class Trainer:
        def __init__(self, model):
            self.ema = ModelEmaV3(model)
            self.optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def train(self, model, loader):
            for batch in loader:
                self.ema.update(model)
                self.optimizer.step()
    """
    assert found(tmp_path, body) == [("update-before-step", "self.ema.update(model)")]


def test_accelerate_counts_micro_batches_too(tmp_path: Path) -> None:
    body = """
    ema = ModelEmaV3(model)
    for batch in loader:
        with accelerator.accumulate(model):
            optimizer.step()
            ema.update(model)
    """
    assert [check for check, _ in found(tmp_path, body)] == ["update-per-micro-batch"]
    gated = body.replace(
        "            ema.update(model)",
        "            if accelerator.sync_gradients:\n                ema.update(model)",
    )
    assert found(tmp_path, gated) == []


def test_diffusers_average_steps_and_is_no_optimizer(tmp_path: Path) -> None:
    body = """
    from diffusers.training_utils import EMAModel
    ema = EMAModel(model.parameters())
    for batch in loader:
        ema.step(model.parameters())
        optimizer.step()
    """
    assert found(tmp_path, body) == [("update-before-step", "ema.step(model.parameters())")]


def test_two_averages_are_looked_at_apart(tmp_path: Path) -> None:
    body = """
    slow, fast = None, None
    slow = ModelEmaV3(model)
    fast = ModelEmaV3(model)
    for batch in loader:
        slow.update(model)
        optimizer.step()
        fast.update(model)
    """
    assert found(tmp_path, body) == [("update-before-step", "slow.update(model)")]


@pytest.mark.parametrize("content", [b"def f(:\n", b"\xff\xfe\x00", b"x = 1\x00"])
def test_what_is_no_python_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.py").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as Python"):
        examine(tmp_path / "train.py")


def test_the_examples_of_the_documentation_are_healthy() -> None:
    root = Path(__file__).parents[2]
    for script in (root / "docs" / "tutorial.py", root / "src" / "polyak" / "demo" / "training.py"):
        assert examine(script).findings == ()


def test_the_command_points_at_the_line(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(HEAD + MISTAKES["update-before-step"][0])

    said = doctor(str(path))
    assert said.returncode == 1
    recognised, finding, *_ = said.stdout.splitlines()
    assert recognised == f"{path}:10: recognised ema (timm.utils.ModelEmaV3), updated in line 13."
    assert finding.startswith(f"{path}:13: ema is updated before optimizer.step() (line 14)")
    assert "instead: " in said.stdout
    told = json.loads(doctor(str(path), "--json").stdout)
    [finding], [average] = told["findings"], told["recognised"]
    assert (finding["line"], finding["check"]) == (13, "update-before-step")
    assert (average["line"], average["name"], average["updates"]) == (10, "ema", [13])
    path.write_text(HEAD)
    without = doctor(str(path))
    assert (without.returncode, without.stdout) == (0, f"{path}: no average found, so nothing was checked.\n")
    path.write_text(HEAD + RIGHT["plain"])
    healthy = doctor(str(path))
    assert healthy.returncode == 0
    assert healthy.stdout.splitlines()[-1] == f"{path}: nothing to complain about."
    missing = doctor(str(tmp_path / "none.py"))
    assert missing.returncode == 1
    assert missing.stderr.startswith("polyak: ")


def notebook(path: Path, *cells: str) -> Path:
    """Code cells, those that begin with # text."""
    made = [
        {
            "cell_type": "markdown" if cell.startswith("# ") else "code",
            "source": cell.splitlines(keepends=True),
        }
        for cell in cells
    ]
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def doctor(*arguments: str | Path) -> Done:
    return polyak("doctor", *arguments)


CELLS = (
    "# Training",
    "!pip install polyak\n%matplotlib inline\nfiles = !ls data\nimport torch, polyak\ntorch?",
    "print(\n    '%d'\n    % 3\n)",
    "%%bash\nfor f in *; do echo $f; done",
    "%%time\nmodel = make()\nema = polyak.EMA(model, 0.999)\noptimizer = torch.optim.AdamW(parameters)",
    "# The loop",
    "for batch in loader:\n    ema.update()\n    if batch:\n        %debug\n    optimizer.step()",
)


def test_a_notebook_is_read_and_its_cells_are_named(tmp_path: Path) -> None:
    path = notebook(tmp_path / "train.ipynb", *CELLS)
    done = doctor(path)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{path}:cell 5:3: recognised ema (polyak.EMA), updated in cell 7:2."
    assert lines[1] == (
        f"{path}:cell 7:2: ema is updated before optimizer.step() (cell 7:5) and averages the weights of "
        "the last step. [update-before-step]"
    )
    rows = json.loads(doctor(path, "--json").stdout)
    assert [row["place"] for row in (*rows["recognised"], *rows["findings"])] == ["cell 5:3", "cell 7:2"]


def test_a_right_notebook_is_left_alone(tmp_path: Path) -> None:
    loop = "for batch in loader:\n    optimizer.step()\n    ema.update()"
    done = doctor(notebook(tmp_path / "train.ipynb", *CELLS[:-1], loop))
    assert done.returncode == 0, done.stdout
    assert "nothing to complain about" in done.stdout


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": [{}]}', '{"cells": [1]}'])
def test_what_is_no_notebook_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "train.ipynb").write_text(content)
    done = doctor(tmp_path / "train.ipynb")
    assert (done.returncode, done.stdout) == (1, "")
    assert "train.ipynb cannot be read as Python: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_is_searched_for_scripts_and_notebooks(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/train.py").write_text("import polyak\nema = polyak.EMA(model, 0.999)\n")
    (tmp_path / "a/other.py").write_text("print('no average')\n")
    (tmp_path / "a/old.py").write_text("print 'Python 2'\n")
    notebook(tmp_path / "train.ipynb", *CELLS)
    for skipped in (".git", "env/lib", "site-packages/x"):
        (tmp_path / skipped).mkdir(parents=True)
        (tmp_path / skipped / "train.py").write_text("import polyak\nema = polyak.EMA(model, 0.999)\n")
    (tmp_path / "env/pyvenv.cfg").touch()
    done = doctor(tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "3 files read, averages in 2."
    assert "[never-updated]" in done.stdout
    assert "cell 7:2" in done.stdout
    assert "other.py" not in done.stdout
    assert done.stderr.startswith(f"polyak: {tmp_path / 'a/old.py'} cannot be read as Python: ")
    assert done.stderr.count("\n") == 1
    (tmp_path / "nothing").mkdir()
    none = doctor(tmp_path / "nothing")
    assert (none.returncode, none.stdout) == (0, "0 files read, averages in 0.\n")
