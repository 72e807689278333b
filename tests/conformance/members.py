"""Who takes part: every engine and framework, as one row each. A new row inherits every test.

A member averages named arrays: it is made from the first ones, steps through later ones, and gives its
average back as NumPy. Rows are those of the frameworks installed here.
"""

from __future__ import annotations

from importlib.util import find_spec

from tests.conformance.row import Arrays as Arrays
from tests.conformance.row import Row as Row

MEMBERS: dict[str, Row] = {}
if find_spec("torch"):
    from tests.conformance import torch_rows

    MEMBERS |= torch_rows.ROWS
if find_spec("paddle"):
    from tests.conformance import paddle_rows

    MEMBERS |= paddle_rows.ROWS
