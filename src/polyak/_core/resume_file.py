"""An EMA's whole state as one safetensors file, with everything but tensors as JSON in its header.

Tensors are named by the index of their track: ``0/weight``, ``1/weight`` …, low parts ``0.low/weight`` …,
copied buffers ``copies/…``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from polyak._core.save import Content
from polyak._core.sharded_files import Piece
from polyak._core.state_dict import EMAState, State
from polyak._core.tensors import T, TensorOps
from polyak._files.boxes import Box, read_box
from polyak._files.checkpoint import LazyTensor
from polyak._files.header import Header
from polyak._files.open import header_of
from polyak.errors import CheckpointError

_COPIES = "copies"
_LOW = ".low"


def packed(state: EMAState[T], placed: Mapping[str, Piece[T]]) -> Content[T]:
    """A state as the content of a file; ``placed`` are the pieces of sharded tensors by name."""
    tensors = {f"{_COPIES}/{name}": tensor for name, tensor in state.copies.items()}
    for place, track in enumerate(state.tracks.values()):
        tensors |= {f"{place}/{name}": tensor for name, tensor in track.tensors.items()}
        tensors |= {f"{place}{_LOW}/{name}": tensor for name, tensor in track.residuals.items()}
    header = Header(
        track=", ".join(state.tracks),
        step=state.clock.step,
        decay=None,
        profile=None,
        role="resumable",
        run=state.run,
        state=state.values(),
    )
    names = {key: key.partition("/")[2] for key in tensors}
    return Content(tensors, header, {key: placed[name] for key, name in names.items() if name in placed})


def read_state(
    path: str | os.PathLike[str],
    tensors: TensorOps[T],
    placed: Mapping[str, Piece[T]],
    form: Callable[[str, T], T] = lambda name, tensor: tensor,
) -> State:
    """The state dict in a file; of the sharded tensors in ``placed`` only the pieces that are here.

    Args:
        path: the file.
        tensors: the framework's.
        placed: the pieces, by name.
        form: of a piece's values in a state, by the tensor's name.

    Raises:
        CheckpointError: the file is damaged, or is not a resumable state.
    """
    from polyak._foreign.open_any import open_weights  # the readers of all formats: most runs need none

    with open_weights(path) as weights:
        header = header_of(weights)
        if header.role != "resumable":
            raise CheckpointError(
                f"{path} holds {header.role} weights, not a state to continue from: "
                "that is written by ema.save(path, resumable=True)."
            )

        def read(name: str, lazy: LazyTensor) -> T:
            piece = placed.get(name)
            if piece is None or piece.whole != lazy.shape:
                return tensors.as_tensor(lazy.read())
            box = Box(piece.offset, tuple(piece.tensor.shape))
            return form(name, tensors.as_tensor(read_box(lazy, box)))

        groups = {
            place: {name: read(name, lazy) for name, lazy in group.items()}
            for place, group in weights.places().items()
        }
    try:
        tracks = {
            name: {**held, "tensors": groups.get(f"{place}", {}), "lows": groups.get(f"{place}{_LOW}", {})}
            for place, (name, held) in enumerate(header.state["tracks"].items())
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its header names no tracks: {error!r}") from error
    return {**header.state, "tracks": tracks, "copies": groups.get(_COPIES, {})}
