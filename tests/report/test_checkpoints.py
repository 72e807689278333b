"""A folder of checkpoints: where each belongs, what merged ones are made of, and how both were judged."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import polyak
from polyak.cli import app
from polyak.report.checkpoints import checkpoints_of, commands
from polyak.report.collect import Collector, collect
from polyak.report.figures import write_figures
from polyak.report.logged import logged_value
from polyak.report.merged import merged
from polyak.report.sections import averages, principal, profile
from polyak.report.words import Words
from polyak.schedules.metric import Mode
from polyak.select.judged import RECORD, fingerprint, judgements_in, record
from tests.report.runs import write_checkpoints

STEPS = (100, 200, 300, 400)


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"layer.weight": torch.full((3, 2), value), "layer.bias": torch.full((3,), value)}


def write_bare(folder: Path) -> Path:
    """Plain checkpoints, whose step is in their names, and a mean of three."""
    folder.mkdir()
    for step in STEPS:
        torch.save(weights(step), folder / f"step-{step}.pt")
    return folder


def merge(folder: Path, names: Sequence[str], out: str = "merged.safetensors", **options: object) -> Path:
    polyak.average_checkpoints([folder / name for name in names], folder / out, **options)  # type: ignore[arg-type]
    return folder / out


def judge(
    folder: Path, metrics: dict[str, float], command: str = "eval {weights}", mode: Mode = "max"
) -> None:
    record(folder, command, mode, {folder / name: metric for name, metric in metrics.items()})


def rows(html: str) -> list[list[str]]:
    """The cells of the first table."""
    found = re.search(r"<tbody>(.*?)</tbody>", html)
    assert found is not None
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in found[1].split("</tr>") if row]


def rows_of(html: str, file: str) -> list[str]:
    """The cells beside the name of a file that are not empty."""
    [cells] = [cells for first, *cells in rows(html) if first == file]
    return [cell for cell in cells if cell]


def test_a_bare_folder_says_which_checkpoints_there_are_and_what_to_run(tmp_path: Path) -> None:
    [run] = collect([write_bare(tmp_path / "run")])
    assert [(one.file, one.kind, one.place and one.place.at) for one in checkpoints_of(run)] == [
        (f"step-{step}.pt", "trained", step) for step in STEPS
    ]
    average, gate = commands(run)
    assert average == "polyak average step-100.pt step-200.pt step-300.pt step-400.pt -o average.safetensors"
    assert gate.startswith("polyak gate average.safetensors step-400.pt --eval ")
    part = merged([run], Words("en"))
    assert rows(part.after)[0] == ["step-100.pt", "trained", "100"]
    assert "Files that do not say whether they are averaged count as trained." in part.after
    assert part.before == ""
    assert part.plots == ()


def test_the_commands_run_as_they_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bare(tmp_path / "run of 'today'")
    (folder / "step-400.pt").rename(folder / "it's $HOME step-400.pt")
    monkeypatch.chdir(folder)
    Path("eval.py").write_text("import sys; print(len(sys.argv[1]))")
    for line in commands(collect([folder])[0]):
        program, *words = shlex.split(line.replace("python eval.py", f"{sys.executable} eval.py"))
        assert program == "polyak"
        done = CliRunner().invoke(app, words)
        assert done.exit_code in (0, 1), done.output  # 1: the average is not better
    [run] = collect([folder])
    assert commands(run) == []
    [judged] = run.judged
    assert set(judged.metrics) == {"average.safetensors", "it's $HOME step-400.pt"}


@pytest.mark.parametrize("known", [True, False])
def test_an_average_says_what_it_is_made_of(tmp_path: Path, known: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    model = torch.nn.Linear(2, 1)
    ema = polyak.EMA(model, 0.9)
    for step in range(1, 7):
        ema.update()
        if step % 2 == 0 and known:
            ema.save(folder / f"step-{step}.safetensors", "raw")
        elif step % 2 == 0:
            torch.save(model.state_dict(), folder / f"step-{step}.safetensors")
    merge(folder, [f"step-{step}.safetensors" for step in (2, 4, 6)], weights=[1, 2, 1])
    [run] = collect([folder])
    [one] = [one for one in run.weights if one.made_of]
    assert [(source.step, source.weight) for source in one.made_of] == [(2, 0.25), (4, 0.5), (6, 0.25)]
    assert [(o.file, o.kind) for o in checkpoints_of(run)][-2:] == [
        ("merged.safetensors", "merged"),
        ("step-6.safetensors", "trained"),
    ]
    [cells] = [row for row in rows(merged([run], Words("en")).after) if row[0] == "merged.safetensors"]
    two = "step 2" if known else "step-2.safetensors"
    assert cells[1] == "merged"
    assert cells[2].startswith(f"0.25 of {two}, 0.5 of ")
    assert cells[3] == "6"
    card = averages([run], Words("en")).before
    assert "We evaluate an average of the weights of 3 checkpoints, from training step 2 to 6" in card
    assert "exponential" not in card
    assert "No average was found" not in card
    assert ("mean of 3 checkpoints" in card) is known, "a card has figures, which need a profile"


def test_what_was_judged_is_drawn_at_its_step(tmp_path: Path) -> None:
    folder = write_bare(tmp_path / "run")
    merge(folder, ["step-100.pt", "step-200.pt"], "a.safetensors")
    merge(folder, ["step-200.pt", "step-300.pt"], "b.safetensors")
    merge(folder, ["step-100.pt", "step-200.pt", "step-300.pt"], "c.safetensors")
    judge(folder, {"a.safetensors": 0.5, "step-200.pt": 0.3})
    judge(folder, {"b.safetensors": 0.6, "step-300.pt": 0.9})
    judge(folder, {"c.safetensors": 0.7, "step-300.pt": 0.4})  # the newest metric of a file counts
    judge(folder, {"a.safetensors": 7.0}, "other {weights}", "min")
    [run] = collect([folder])
    part = merged([run], Words("en"))
    first, second = part.plots
    assert [(line.label, line.x, line.y) for line in first.lines] == [
        ("trained", [200, 300], [0.3, 0.4]),
        ("merged", [200, 300], [0.5, 0.7]),
    ]
    assert len(first.dots) == 5
    assert "Metric: eval {weights}; more is better." in first.note
    assert [line.y for line in second.lines] == [[7.0]]
    [cells] = [row for row in rows(part.after) if row[0] == "a.safetensors"]
    assert cells[-2:] == ["0.5", "7"]
    assert "polyak gate" not in part.after


def test_the_better_of_two_merges_of_one_step_depends_on_the_mode(tmp_path: Path) -> None:
    folder = write_bare(tmp_path / "run")
    for name in ("a", "b"):
        merge(folder, ["step-100.pt", "step-200.pt"], f"{name}.safetensors")
    for mode, best in (("max", 0.6), ("min", 0.5)):
        judge(folder, {"a.safetensors": 0.5, "b.safetensors": 0.6}, f"{mode} {{weights}}", mode)
        plot = merged(collect([folder]), Words("en")).plots[-1]
        assert plot.lines[0].y == [best]


def test_a_file_written_again_is_not_shown_with_its_old_metric(tmp_path: Path) -> None:
    folder = write_bare(tmp_path / "run")
    merge(folder, ["step-100.pt", "step-200.pt"])
    judge(folder, {"merged.safetensors": 0.5, "step-200.pt": 0.25, "step-300.pt": 0.75})
    collector = Collector([folder])
    [run] = collector.collect()
    assert run.judged[0].stale == ()
    merge(folder, ["step-100.pt", "step-300.pt"])  # as long as before
    (folder / "step-200.pt").unlink()
    [run] = collector.collect()
    [judged] = run.judged
    assert judged.metrics == {"step-300.pt": 0.75}
    assert judged.stale == ("merged.safetensors", "step-200.pt")
    part = merged([run], Words("en"))
    assert "Changed or gone since they were evaluated: merged.safetensors, step-200.pt." in part.plots[0].note
    assert "polyak gate merged.safetensors step-300.pt" in part.after


def test_of_a_judged_file_without_a_step_the_metric_is_said_in_words(tmp_path: Path) -> None:
    folder = write_bare(tmp_path / "run")
    torch.save(weights(1), folder / "best.pt")
    judge(folder, {"best.pt": 0.5, "step-200.pt": 0.25})
    [plot] = merged(collect([folder]), Words("en")).plots
    assert [line.y for line in plot.lines] == [[0.25]]
    assert "Evaluated, but of no step that is known here: best.pt (0.5)." in plot.note


def test_epochs_in_names_are_an_axis_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for epoch in (0, 1, 2, 10):
        torch.save({"model": weights(epoch), "epoch": epoch}, folder / f"epoch_{epoch}.pt")
    merge(folder, ["epoch_2.pt", "epoch_10.pt"])
    judge(folder, {"merged.safetensors": 0.5, "epoch_10.pt": 0.4, "epoch_0.pt": 0.1})
    [run] = collect([folder])
    assert [(one.file, one.place and one.place.at) for one in checkpoints_of(run)][-2:] == [
        ("merged.safetensors", 10),
        ("epoch_10.pt", 10),
    ]
    part = merged([run], Words("zh"))
    assert part.plots[0].x == "轮次"
    assert part.plots[0].lines[0].x == [0, 10]
    assert ["epoch_2.pt", "训练", "", "第 2 轮", "–"] in rows(part.after)


def write_hf(folder: Path) -> Path:
    """As the Hugging Face Trainer leaves it: folders with the log up to each, and the last weights beside."""
    history: list[dict[str, float]] = []
    for step in STEPS:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        row = {"step": step, "eval_loss": 1 / step, "loss": 2.0}
        history.append(row | {"num_input_tokens_seen": 64.0 * step})
        state = json.dumps({"global_step": step, "log_history": history})
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        save_file(weights(step), folder / f"checkpoint-{step}" / "model.safetensors")
        (folder / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"not read")
    save_file(weights(400), folder / "model.safetensors")
    return folder


def test_a_trainers_folder_has_its_log_beside_its_checkpoints(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "out")
    merge(folder, ["checkpoint-300", "checkpoint-400"])
    [run] = collect([folder])
    assert run.name == "out"
    assert run.problems == ()
    assert [one.name for one in run.logged] == ["eval_loss", "loss"]
    part = merged([run], Words("en"))
    found = {row[0]: row[1:] for row in rows(part.after)}
    assert found["checkpoint-300"] == ["trained", "", "300", "19,200", "0.003333", "2"]
    assert found["merged.safetensors"][2:] == ["400", "25,600", "–", "–"]
    assert set(found) == {*(f"checkpoint-{s}" for s in STEPS), "merged.safetensors", "model.safetensors"}
    assert commands(run)[0].startswith("polyak gate merged.safetensors checkpoint-400 ")
    judge(folder, {"merged.safetensors": 0.5, "checkpoint-400": 0.4})
    [plot] = merged(collect([folder]), Words("en")).plots
    assert (plot.x, plot.lines[0].x) == ("tokens", [25_600])


def test_shards_are_the_checkpoint_that_their_index_is(tmp_path: Path) -> None:
    folder = write_bare(tmp_path / "run")
    merge(folder, ["step-100.pt", "step-200.pt"], max_shard_size=30)
    [run] = collect([folder])
    assert run.problems == ()
    assert [one.file for one in checkpoints_of(run) if one.kind == "merged"] == [
        "merged.safetensors.index.json"
    ]


def test_raw_and_averaged_columns_of_a_log_belong_to_raw_and_averaged_files(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    ema = polyak.EMA(torch.nn.Linear(2, 1), {"long": 0.9})
    for step in (1, 2):
        ema.update()
        ema.save(folder / f"ema-{step}.safetensors")
        ema.save(folder / f"raw-{step}.safetensors", "raw")
    lines = [{"step": step, "val_loss": step / 10, "raw/val_loss": float(step)} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [run] = collect([folder])
    [logged] = run.logged
    values = {one.file: logged_value(logged, one.sets[0]) for one in checkpoints_of(run)}
    assert values == {
        "ema-1.safetensors": 0.1,
        "raw-1.safetensors": 1.0,
        "ema-2.safetensors": 0.2,
        "raw-2.safetensors": 2.0,
    }


def write_epochs(folder: Path, named: Sequence[int], rows: Sequence[dict[str, float]]) -> Path:
    """Files named by epoch, and a log."""
    folder.mkdir()
    for epoch in named:
        torch.save(weights(epoch), folder / f"epoch_{epoch}.pt")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shown(folder: Path) -> dict[str, float | None]:
    """The logged loss of each file."""
    [run] = collect([folder])
    found = [one for one in run.logged if one.name == "val_loss"]
    return {one.file: logged_value(logged, one) for logged in found for one in run.weights}


@pytest.mark.parametrize(
    ("named", "logged", "first"),
    [
        ([0, 1, 2], [0, 1, 2], 0),
        ([1, 2, 3], [1, 2, 3], 1),
        ([0, 1, 2], [1, 2, 3], 1),
        ([1, 2, 3], [0, 1, 2], 0),
        ([0, 2], [1, 2, 3, 4], 1),
        ([2, 4], [1, 2, 3, 4], 2),
        ([1, 2], [1, 2, 3, 4], None),  # or the second and the third
        ([1, 3], [0, 1, 2, 3], None),  # or the first and the third
        ([0, 1, 2], [0, 1, 2, 3], None),  # or counted from 1, with an evaluation before the training
        ([0, 1, 9], [0, 1, 2], None),
    ],
)
@pytest.mark.parametrize("steps", [0, 100])
def test_files_and_rows_meet_by_epoch_where_there_is_one_way_to_count(
    named: list[int], logged: list[int], first: int | None, steps: int, tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = [
        {"epoch": epoch, "val_loss": epoch / 10} | ({"step": steps * (epoch + 1)} if steps else {})
        for epoch in logged
    ]
    ahead = None if first is None else first - named[0]
    expected = {} if ahead is None else {f"epoch_{epoch}.pt": (epoch + ahead) / 10 for epoch in named}
    assert shown(write_epochs(tmp_path / "run", named, rows)) == expected


def test_of_several_rows_in_an_epoch_the_last_is_shown_and_none_within_one(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [
        {"step": step, "epoch": epoch, "val_loss": step / 10}
        for step, epoch in ((1, 1), (2, 1), (3, 1.5), (4, 2), (5, 2.5))
    ]
    folder = write_epochs(tmp_path / "run", [1, 2], rows)
    assert shown(folder) == {"epoch_1.pt": 0.2, "epoch_2.pt": 0.4}
    part = merged(collect([folder]), Words("en"))
    assert rows_of(part.after, "epoch_2.pt") == ["trained", "epoch 2", "0.4"]
    assert "of that step or epoch" in part.after


def test_an_epoch_in_a_file_counts_where_no_name_has_one(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [{"epoch": epoch, "val_loss": epoch / 10} for epoch in (1, 2, 3)]
    folder = write_epochs(tmp_path / "run", [], rows)
    for epoch in range(3):
        torch.save({"model": weights(epoch), "epoch": epoch}, folder / f"{'abc'[epoch]}.pt")
    assert shown(folder) == {"a.pt": 0.1, "b.pt": 0.2, "c.pt": 0.3}
    for epoch in (1, 2, 3):
        torch.save(weights(epoch), folder / f"epoch_{epoch}.pt")
    expected = {"epoch_1.pt": 0.1, "epoch_2.pt": 0.2, "epoch_3.pt": 0.3}
    assert shown(folder) == {"a.pt": None, "b.pt": None, "c.pt": None} | expected


def test_a_file_of_a_step_has_the_row_of_that_step_only(tmp_path: Path) -> None:
    folder = write_epochs(tmp_path / "run", [0], [{"step": 100, "epoch": 0, "val_loss": 0.1}])
    for step in (50, 100):
        torch.save(weights(step), folder / f"epoch=0-step={step}.ckpt")
    expected = {"epoch=0-step=50.ckpt": None, "epoch=0-step=100.ckpt": 0.1, "epoch_0.pt": 0.1}
    assert shown(folder) == expected


@pytest.mark.parametrize("files", [1, 2])
def test_a_metric_without_a_mark_is_of_neither_where_an_average_stands_beside(
    files: int, tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = [{"step": step, "val_loss": 0.1} for step in (10, 20)]
    folder = write_epochs(tmp_path / "run", [], rows)
    torch.save({"model": weights(1), "step": 10}, folder / "first.pt")
    if files == 1:
        torch.save({"model": weights(1), "model_ema": weights(2), "step": 20}, folder / "last.pt")
    else:
        torch.save({"model": weights(1), "step": 20}, folder / "last.pt")
        torch.save({"model_ema": weights(1), "step": 20}, folder / "ema.pt")
    assert {file: value for file, value in shown(folder).items() if value is not None} == {"first.pt": 0.1}


def test_a_run_with_its_average_only_is_no_series_of_checkpoints(tmp_path: Path) -> None:
    ema = polyak.EMA(torch.nn.Linear(2, 1), 0.9)
    ema.update()
    ema.save(tmp_path / "average.safetensors")
    ema.save(tmp_path / "last.safetensors", "raw")
    part = merged(collect([tmp_path]), Words("en"))
    assert part.after == ""
    assert "This compares sweeps" in part.before


def test_each_pattern_of_an_average_by_name_has_its_card(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    ema = polyak.EMA(model, polyak.ByName({"weight": 0.99, "*": polyak.HalfLife(steps=7)}))
    ema.update(steps=300)
    ema.save(tmp_path / "average.safetensors")
    [run] = collect([tmp_path])
    first, second = principal(run)
    assert [(one.pattern, one.schedule) for one in (first, second)] == [
        ("weight", "Constant(0.99)"),
        ("*", "HalfLife(steps=7)"),
    ]
    header = polyak.load(tmp_path / "average.safetensors").header
    assert [one.half_life for one in (first, second)] == [rule.profile.half_life for rule in header.rules]
    part = averages([run], Words("en"))
    assert "average, weight" in part.before
    assert "moving average of the weights “*” (HalfLife(steps=7)) after 300 training steps" in part.before
    assert "unknown" not in part.before
    assert [plot.title for plot in profile([run], Words("en")).plots] == [
        "average.safetensors, weight",
        "average.safetensors, *",
    ]


def test_a_damaged_record_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = write_bare(tmp_path / "run")
    nan = '{"mode": "max", "command": "", "files": [["a", NaN, ""]]}'
    for line in ("[1]", '{"mode": "max"}', '{"mode": "up"}', "{", nan):
        (folder / RECORD).write_text(line + "\n")
        [run] = collect([folder])
        [problem] = run.problems
        assert problem.startswith(f"{RECORD}: line 1 is not of polyak gate"), problem
        assert len(checkpoints_of(run)) == len(STEPS)


def test_a_record_names_files_from_its_folder_wherever_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bare(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    Path("run/judged").mkdir()
    record(Path("run/judged"), "eval", "max", {Path("run/step-100.pt"): 1.0})
    [line] = judgements_in(folder / "judged" / RECORD)
    assert line.files[0].file == "../step-100.pt"
    [run] = collect([folder])
    assert dict(run.judged[0].metrics) == {"step-100.pt": 1.0}


def test_a_fingerprint_differs_with_either_end_and_not_with_the_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(300_000))
    before = fingerprint(path)
    os.utime(path, (1, 1))
    assert fingerprint(path) == before
    for place in (0, 299_999):
        data = bytearray(300_000)
        data[place] = 1
        path.write_bytes(data)
        assert fingerprint(path) != before
    assert fingerprint(tmp_path) == fingerprint(path), "of a folder it is that of its files"


def test_what_was_promoted_is_recorded_as_what_it_now_is(tmp_path: Path) -> None:
    for name, metric in (("new", "0.9"), ("best", "0.8")):
        (tmp_path / name).write_text(metric)
    show = shlex.join([sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", "{weights}"])
    words = ["gate", str(tmp_path / "new"), str(tmp_path / "best"), "--eval", show, "--promote"]
    assert CliRunner().invoke(app, [*words, "--record", str(tmp_path / "kept")]).exit_code == 0
    [line] = judgements_in(tmp_path / "kept" / RECORD)
    print_of_new = fingerprint(tmp_path / "new")
    assert line.files == (("../new", 0.9, print_of_new), ("../best", 0.9, print_of_new))
    refused = CliRunner().invoke(app, [*words, "--record", str(tmp_path / "new")])
    assert refused.exit_code == 2
    assert "cannot hold the record" in refused.output


def test_what_was_judged_is_a_figure_too(tmp_path: Path) -> None:
    run = write_checkpoints(tmp_path / "run", "<b> $x$.pt")
    written = write_figures(collect([run]), tmp_path / "figures", "zh")
    assert sorted(path.name for path in written) == ["merged-files-run.png", "merged-files-run.svg"]
    [svg] = [path for path in written if path.suffix == ".svg"]
    drawn = {one.text for one in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"训练步", "合并", "训练"} <= drawn
