"""Other libraries' checkpoints: which one wrote a file, and which of the weights in it are averaged."""

from polyak.checkpoints.foreign.parts import UPDATES as UPDATES
from polyak.checkpoints.foreign.parts import Part as Part
from polyak.checkpoints.foreign.parts import Recognised as Recognised
from polyak.checkpoints.foreign.parts import Role as Role
from polyak.checkpoints.foreign.recognition import is_own as is_own
from polyak.checkpoints.foreign.recognition import recognise as recognise
