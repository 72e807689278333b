"""Finding common mistakes with averages in a training script. Nothing is imported or run.

``sources`` reads scripts and notebooks, ``script`` finds averages and related calls, ``by_hand`` averages
that a script computes itself, ``checks`` contains one function per mistake, ``examine`` runs them all.
"""

from polyak.doctor.examine import Examination as Examination
from polyak.doctor.examine import Recognised as Recognised
from polyak.doctor.examine import examine as examine
from polyak.doctor.script import Finding as Finding
from polyak.doctor.sources import find_scripts as find_scripts
