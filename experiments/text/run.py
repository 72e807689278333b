"""Text: masked characters of Shakespeare, and names in Japanese sentences and in a Chinese newspaper.

python -m experiments.text.run --quick      # minutes
python -m experiments.text.run              # ten minutes
"""

from __future__ import annotations

from experiments import harness
from experiments.text.entities import JAPANESE, NEWSPAPER
from experiments.text.masked import MASKED

EXPERIMENTS = (JAPANESE, NEWSPAPER, MASKED)

if __name__ == "__main__":
    harness.main(*EXPERIMENTS)
