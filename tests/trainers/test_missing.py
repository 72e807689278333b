"""A trainer that is not installed answers with its pip line; what opens its files does not need it."""

import json
import subprocess
import sys
from functools import cache

import pytest

CASES = [
    ("lightning", ["lightning", "pytorch_lightning"], "Lightning"),
    ("transformers", ["transformers"], "transformers"),
    ("transformers", ["accelerate"], "accelerate"),
    ("accelerate", ["accelerate"], "accelerate"),
    ("ultralytics", ["ultralytics"], "Ultralytics"),
    ("ignite", ["ignite"], "Ignite"),
    ("keras", ["keras"], "Keras"),
]
IMPORTS = [*((trainer, gone) for trainer, gone, _ in CASES), ("checkpoint", CASES[0][1])]

EACH_WITHOUT = """
import importlib, json, sys
class Gone:
    packages = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, finder := Gone())
answers = []
for trainer, finder.packages in json.loads(sys.argv[1]):
    for module in [m for m in sys.modules if m.startswith(("polyak", *finder.packages))]:
        del sys.modules[module]
    try:
        importlib.import_module(f"polyak.trainers.{trainer}")
        answers.append("")
    except ImportError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@cache
def answers() -> list[str]:
    """What each import says, of one process in which one package after another is missing."""
    command = [sys.executable, "-c", EACH_WITHOUT, json.dumps(IMPORTS)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{t}-{gone[0]}" for t, gone, _ in CASES])
def test_a_missing_trainer_answers_with_its_pip_line(case: int) -> None:
    trainer, _, name = CASES[case]
    expected = f'{name} is not installed. Install it with: pip install "polyak[{trainer}]"'
    assert answers()[case] == expected


def test_a_checkpoint_of_lightning_is_opened_without_it() -> None:
    assert answers()[-1] == ""
