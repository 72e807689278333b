"""Opening a file or folder by its content, not its name."""

from __future__ import annotations

from polyak._files.checkpoint import Checkpoint
from polyak._files.open import INDEX, read_index, read_safetensors
from polyak._files.source import Source, Where, exists, inside, is_folder, open_source
from polyak._foreign import bare_pickle, dcp, keras, torch_zip
from polyak.errors import CheckpointError

_NAMES = ("model", "diffusion_pytorch_model", "pytorch_model", "adapter_model")
_ENDINGS = (".safetensors.index.json", ".bin.index.json", ".safetensors", ".bin")
_KNOWN = [name + ending for ending in _ENDINGS for name in _NAMES]
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# A stream of torch before 1.6 begins with its magic number, pickled as a long of ten bytes.
_OLD_TORCH = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."

_PACKED = "Unpack it first"
# Magic bytes of files that are often mistaken for checkpoints: their kind, and the way out.
_OTHERS = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Fetch it with git lfs pull"),
    b"<!doctype html": ("a web page", "Download the file itself: a login or an error page was saved"),
    b"<html": ("a web page", "Download the file itself: a login or an error page was saved"),
    b"<?xml": ("an XML document", "Download the file itself: an error message was saved"),
    b"\x1f\x8b": ("compressed by gzip", _PACKED),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", _PACKED),
    b"\xfd7zxz\0": ("compressed by xz", _PACKED),
    b"bzh": ("compressed by bzip2", _PACKED),
    b"gguf": ("a GGUF file", "Its tensors are quantised; use the checkpoint that it was made from"),
    b"\x89hdf\r\n": ("an HDF5 file", "Load it with Keras or h5py, and save its arrays as safetensors"),
    b"\x93numpy": ("a NumPy array", "Save it with safetensors.numpy.save_file, under a name"),
}


def open_weights(where: Where) -> Checkpoint:
    """Open a checkpoint of any format; close it by leaving its ``with`` block.

    Args:
        where: a file, a folder of shards or of a distributed checkpoint, or a URL that fsspec knows.

    Raises:
        CheckpointError: it cannot be read, or its format is unknown.
        MissingExtraError: a URL was given and fsspec is missing.
    """
    if is_folder(where):
        return _open_folder(where)
    if str(where).endswith(INDEX):
        return read_index(where, read_file)
    index = f"{where}{INDEX}"
    if not exists(where) and exists(index):  # written in shards under this name
        return read_index(index, read_file)
    source = open_source(where)
    try:
        return read_file(source)
    except BaseException:
        source.close()
        raise


def read_file(source: Source) -> Checkpoint:
    """The tensors of one open file."""
    head = source.read(0, min(16, source.size))
    # A safetensors file begins with the length of its header, which may equal the first bytes of another
    # format. Its ninth byte is a brace, which no other format has there.
    if head[8:9] == b"{":
        return read_safetensors(source)
    if head.startswith(_ZIP):
        return keras.read_zip(source) or torch_zip.read_zip(source)
    if head.startswith(_PICKLE):
        old = head[2:].startswith(_OLD_TORCH)
        return torch_zip.read_stream(source) if old else bare_pickle.read_pickle(source)
    if source.size == 0:
        raise CheckpointError(f"{source.name} is empty: its writer was stopped, or the disk was full.")
    beginning = source.read(0, min(64, source.size)).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, (what, way_out) in _OTHERS.items():
        if beginning.startswith(start):
            raise CheckpointError(f"{source.name} is {what}. {way_out}.")
    return read_safetensors(source)


def is_checkpoint_folder(folder: Where) -> bool:
    """Whether a folder is one checkpoint, by the names in it."""
    return any(exists(inside(folder, name)) for name in (dcp.METADATA, *_KNOWN))


def is_part_of_folder(name: str) -> bool:
    """Whether a file's name is one by which a folder is a checkpoint."""
    return name in _KNOWN


def _open_folder(folder: Where) -> Checkpoint:
    if exists(inside(folder, dcp.METADATA)):
        return dcp.read_folder(folder)
    for name in _KNOWN:
        if exists(inside(folder, name)):
            return open_weights(inside(folder, name))
    raise CheckpointError(
        f"{folder} holds no checkpoint: neither {dcp.METADATA}, as distributed ones do, nor any of "
        f"{', '.join(_KNOWN)}."
    )
