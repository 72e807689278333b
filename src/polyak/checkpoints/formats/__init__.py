"""Every kind of checkpoint, opened as ``Weights``: one file per format."""

from polyak.checkpoints.formats.opening import open_weights as open_weights
