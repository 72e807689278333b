"""`polyak convert`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from polyak.cli.console import say
from polyak.cli.extras import needs
from polyak.cli.options import Json
from polyak.convert.convert import convert as to_polyak
from polyak.convert.export import check_target, count_of, export_tree, write_paddle
from polyak.convert.rename_rules import NameMap, name_map
from polyak.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """The options beside IN and OUT."""

    to: str | None
    part: str | None
    raw: str | None
    updates: int | None
    names: NameMap | None
    max_shard_size: str | None

    def check(self) -> None:
        """Refuse options that do not apply to this direction.

        Raises:
            ConfigError: one of them was given.
        """
        if self.to is not None:
            check_target(self.to)
        if self.to is None and (self.raw is not None or self.updates is not None):
            raise ConfigError("--raw and --updates are for another library's format: name it with --to.")
        if self.to is not None and self.max_shard_size is not None:
            raise ConfigError("--max-shard-size is for safetensors files: leave it out with --to.")


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="Any checkpoint: a file, a folder, a URL.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="NAME.safetensors, or any name with --to.")],
    part: Annotated[
        str | None, typer.Option(help="average, raw, or a name that inspect shows.", show_default="all")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="torch, timm, lightning, swa_utils, ema-pytorch or paddle.")
    ] = None,
    raw: Annotated[
        str | None, typer.Option(help="With --to: the raw model to put beside the average.")
    ] = None,
    updates: Annotated[int | None, typer.Option(help="With --to: number of updates of the average.")] = None,
    names: Annotated[
        str | None, typer.Option(help="torch-to-paddle, paddle-to-torch or a JSON file of rules.")
    ] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Apply the rules of --names in reverse.")] = False,
    max_shard_size: Annotated[str | None, typer.Option(help="Write shards above this size: 5GB.")] = None,
    as_json: Json = False,
) -> None:
    """Convert checkpoints of other libraries, and back."""
    rules = None if names is None else name_map(names)
    if invert and rules is None:
        raise ConfigError("--invert reverses the rules of --names: give them too.")
    rules = rules.inverse() if rules is not None and invert else rules
    options = Options(to, part, raw, updates, rules, max_shard_size)
    options.check()
    written = _exported(source, out, options) if to is not None else _converted(source, out, options)
    if as_json:
        print(json.dumps({"written": written}))
        return
    for one in written:
        say(f"wrote {one['path']}: {one['part']}, {one['tensors']} tensors")
        for key, words in (("unmatched", "under their own names"), ("dropped", "left out")):
            if one[key]:
                say(f"  {len(one[key])} {words}: {', '.join(one[key])}")


def _converted(source: str, out: Path, options: Options) -> list[dict[str, Any]]:
    made = to_polyak(source, out, options.part, options.names, options.max_shard_size)
    return [{**vars(one), "path": str(one.path)} for one in made]


def _exported(source: str, out: Path, options: Options) -> list[dict[str, Any]]:
    made = export_tree(source, options.to or "", options.raw, options.part, options.updates, options.names)
    if options.to == "paddle":
        write_paddle(out, made.tree)
    else:
        with needs("torch", "torch"):
            from polyak.torch.write import write_torch

            write_torch(out, made.tree)
    lists = {"unmatched": made.unmatched, "dropped": made.dropped}
    return [{"path": str(out), "part": options.to, "tensors": count_of(made.tree), **lists}]
