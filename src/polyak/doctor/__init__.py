"""Reading a training script for the mistakes people make with averages. Nothing is imported or run.

``sources`` reads scripts and notebooks, ``script`` finds what concerns averages, ``by_hand`` those that a
script computes itself, ``checks`` holds one function per mistake, ``examine`` runs them all.
"""

from polyak.doctor.examine import Examination as Examination
from polyak.doctor.examine import Recognised as Recognised
from polyak.doctor.examine import examine as examine
from polyak.doctor.script import Finding as Finding
from polyak.doctor.sources import find_scripts as find_scripts
