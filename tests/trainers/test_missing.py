"""A trainer that is not installed answers with its pip line; what opens its files does not need it."""

import subprocess
import sys

import pytest

GONE = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {gone}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
"""


def without(packages: set[str], code: str) -> str:
    command = [sys.executable, "-c", GONE.format(gone=packages) + code]
    return subprocess.run(command, check=False, capture_output=True, text=True).stderr.rstrip()


@pytest.mark.parametrize(
    ("trainer", "packages", "name"),
    [
        ("lightning", {"lightning", "pytorch_lightning"}, "Lightning"),
        ("transformers", {"transformers"}, "transformers"),
        ("transformers", {"accelerate"}, "accelerate"),
        ("accelerate", {"accelerate"}, "accelerate"),
        ("ultralytics", {"ultralytics"}, "Ultralytics"),
        ("ignite", {"ignite"}, "Ignite"),
        ("keras", {"keras"}, "Keras"),
    ],
)
def test_a_missing_trainer_answers_with_its_pip_line(trainer: str, packages: set[str], name: str) -> None:
    told = without(packages, f"import polyak.trainers.{trainer}")
    assert told.endswith(f'{name} is not installed. Install it with: pip install "polyak[{trainer}]"')


def test_a_checkpoint_of_lightning_is_opened_without_it() -> None:
    assert without({"lightning", "pytorch_lightning"}, "import polyak.trainers.checkpoint") == ""
