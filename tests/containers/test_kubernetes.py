"""The manifest is what Kubernetes' schemas allow, and its command one that the experiments understand."""

from __future__ import annotations

import copy
import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from experiments import harness
from experiments.results import NAMES
from tests.containers.images import FLAVOURS, ROOT, SCRIPT

CLAIM, JOB = yaml.safe_load_all((ROOT / "containers/experiment.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
[SEED] = POD["containers"]
RELEASES = ("1.29", "1.33", "1.37")  # from 1.29 on every cluster knows backoffLimitPerIndex


@pytest.mark.parametrize("release", RELEASES)
def test_it_is_what_the_schemas_allow(release: str) -> None:
    for resource in (CLAIM, JOB):
        assert kubernetes_validate.validate(resource, release, strict=True) == release


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda job: job["spec"].update(completion=5), "completion"),
        (lambda job: job["spec"].update(completions="5"), "'5'"),
        (lambda job: job["spec"]["template"]["spec"]["containers"][0].pop("name"), "name"),
    ],
)
def test_what_they_do_not_allow_is_seen(change: Any, words: str) -> None:
    wrong = copy.deepcopy(JOB)
    change(wrong)
    with pytest.raises(kubernetes_validate.ValidationError, match=words):
        kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


def test_what_it_names_is_there() -> None:
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert POD["restartPolicy"] == "Never", "an Indexed Job's pods are replaced, not restarted"
    assert SEED["image"] in {f"polyak:{flavour}" for flavour in FLAVOURS}
    [volume], [mount] = POD["volumes"], SEED["volumeMounts"]
    assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert mount["name"] == volume["name"]
    [user] = re.findall(r"useradd --uid (\d+) ", SCRIPT.read_text())
    identity = POD["securityContext"]
    assert {identity[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}


def test_each_pod_computes_its_seed_and_the_job_as_many_as_the_experiment_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of each pod in turn, all but the training; then the call that the page names."""
    command = [python, option, module, *_] = SEED["command"]
    assert (python, option) == ("python", "-m")
    assert module.split(".")[1] in NAMES
    assert JOB["metadata"]["name"] == f"polyak-{module.split('.')[1]}"
    [experiment] = importlib.import_module(module).EXPERIMENTS
    assert JOB["spec"]["completions"] == experiment.seeds
    environment = {entry["name"]: entry for entry in SEED["env"]}
    index = environment["SEED"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"

    numbers = {name: 1.0 for row in experiment.rows for name in (row.without[0], row.with_average[0])}
    seeds: list[int] = []
    experiment = replace(experiment, run=lambda seed, _: seeds.append(seed) or numbers)
    arguments = [word.replace(SEED["volumeMounts"][0]["mountPath"], str(tmp_path)) for word in command[3:]]
    for pod in range(JOB["spec"]["completions"]):
        harness.main(experiment, arguments=[word.replace("$(SEED)", str(pod)) for word in arguments])
        assert seeds == list(range(pod + 1))
    harness.main(experiment, arguments=["--out", str(tmp_path)])
    assert len(seeds) == experiment.seeds, "gathering computes nothing"
    assert json.loads((tmp_path / f"{experiment.name}.json").read_text())["seeds"] == seeds
    assert f"({len(seeds)} seeds" in capsys.readouterr().out
