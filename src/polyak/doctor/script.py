"""What a training script does with averages: made where, updated when, put into the model and taken out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from polyak.doctor import by_hand
from polyak.doctor.by_hand import Loop, Updater

# Classes of the known libraries, and what people call their own.
_AVERAGE = re.compile(
    r"(?<![A-Z])EMA(Model|V\d)?$|Ema(V\d)?$|ExponentialMovingAverage|AveragedModel|StochasticWeightAverage$"
)
_TEACHER = re.compile(r"^polyak\.(torch\.|paddle\.)?Teacher$")
# What updates an average by itself: callbacks, timm's tasks.
_KEEPER = re.compile(
    r"WeightAverag(e|ing)$|weight_averaging$|(EMA|Ema|SWA)(Callback|Hook|Handler)$|\.setup_ema$"
)
_SAME = ("to", "cuda", "cpu", "eval", "train", "requires_grad_", "float", "double")  # return what they are of
_OPTIMIZER = re.compile(r"(^|[._])(optim|optimizer|opt)(_?\w*)?$", re.IGNORECASE)
_OPTIMIZERS = re.compile(r"(^|\.)optim\.(?!lr_scheduler|swa_utils)")  # a module that makes optimizers alone
_MOVES = ("to", "cuda", "half", "bfloat16", "float", "double")


@dataclass(frozen=True)
class Finding:
    """A mistake: where it is, what it does, and the way out."""

    line: int
    check: str
    message: str
    fix: str


@dataclass(frozen=True)
class Place:
    """Where a call stands. ``inside`` holds the statements around it within its function, outermost first."""

    line: int
    function: str
    inside: tuple[ast.AST, ...]
    in_finally: bool

    @property
    def loops(self) -> tuple[ast.AST, ...]:
        return tuple(node for node in self.inside if isinstance(node, ast.For | ast.AsyncFor | ast.While))

    @property
    def conditions(self) -> list[str]:
        return [ast.unparse(node.test) for node in self.inside if isinstance(node, ast.If)]


@dataclass(frozen=True)
class Call:
    """``on.method(...)``, or ``method(...)`` with an empty ``on``; ``target`` is what it is assigned to.

    loop: for an update that the script computes itself.
    """

    place: Place
    on: str
    method: str
    node: ast.Call
    target: str = ""
    loop: Loop | None = None

    @property
    def line(self) -> int:
        return self.place.line

    @property
    def said(self) -> str:
        return f"{self.on}.{self.method}() (line {self.line})"

    def has(self, keyword: str) -> bool:
        return any(k.arg == keyword for k in self.node.keywords)

    @property
    def arguments(self) -> list[str]:
        return [ast.unparse(a) for a in (*self.node.args, *(k.value for k in self.node.keywords))]


@dataclass(frozen=True)
class Average:
    """An average made in the script: its variable, its class in full, the model it was given.

    elsewhere: something else has it, which may update it: a trainer, or the object it is an attribute of.
    """

    name: str
    path: str
    model: str
    call: Call
    elsewhere: bool = False

    @property
    def library(self) -> str:
        return self.path.split(".")[0]


@dataclass
class Script:
    """Everything found, in the order of the source."""

    calls: list[Call] = field(default_factory=list[Call])
    averages: list[Average] = field(default_factory=list[Average])
    scalers: set[str] = field(default_factory=set[str])
    optimizers: dict[str, Call] = field(default_factory=dict[str, Call])

    def of(self, average: Average, *methods: str) -> list[Call]:
        """Calls of an average's methods, by whatever leads to it (``ema``, ``self.ema``, ``trainer.ema``)."""
        last = average.name.rpartition(".")[2]
        return [c for c in self.calls if c.method in methods and c.on.rpartition(".")[2] == last]

    def on(self, average: Average) -> list[Call]:
        """Calls of any method of an average, and of the average itself with its model."""
        last = average.name.rpartition(".")[2]
        called = [c for c in self.calls if c.method == last and average.model in c.arguments]
        return [c for c in self.calls if c.on.rpartition(".")[2] == last] + called

    def hands_on(self, average: Average) -> bool:
        """Whether something else is given the average, which may update it."""
        last = average.name.rpartition(".")[2]
        name = rf"(?:(?<![\w.]){re.escape(average.name)}|\bself\.{re.escape(last)})"
        keeps = re.compile(rf"{name}(?:\.(?:update\w*|step))?(?![\w.(])")  # itself, or its method to call
        others = [c for c in self.calls if c.method not in ("save", "print", "len", "isinstance", "deepcopy")]
        return any(keeps.search(argument) for c in others for argument in c.arguments)

    def steps(self) -> list[Call]:
        """Calls that step an optimizer, through a GradScaler too."""
        return [
            c for c in self.calls if c.method == "step" and (c.on in self.scalers or self.optimizes(c.on))
        ]

    def scaled(self, call: Call) -> bool:
        return call.on in self.scalers

    def moves(self, model: str) -> list[Call]:
        """Calls that move a model or change its dtype."""
        return [c for c in self.calls if c.on == model and c.method in _MOVES]

    def optimizes(self, name: str) -> bool:
        """Whether this is an optimizer: made from torch.optim, or called like one."""
        averages = {a.name for a in self.averages}
        return name in self.optimizers or (bool(_OPTIMIZER.search(name)) and name not in averages)


def read(source: str) -> Script:
    """What a script does.

    Raises:
        SyntaxError: it is no Python.
    """
    tree = ast.parse(source)
    script = Script()
    imported = dict(_imports(tree))
    own, functions = by_hand.classes(tree), by_hand.updaters(tree)
    for call in _calls(tree.body, "", (), in_finally=False):
        inside = call.place.function.split(".")
        if call.loop and (own.intersection(inside) or inside[-1] in functions):
            continue  # counted where it is called
        script.calls.append(call)
        if updater := functions.get(call.method):
            script.calls.append(_called(call, updater))
        path = imported.get(call.on.split(".")[0], call.on.split(".")[0])
        full = ".".join(filter(None, [path, *call.on.split(".")[1:], call.method]))
        if not call.on:
            full = imported.get(call.method, call.method)
        _note(script, call, full, own)
    _note_by_hand(script)
    return script


def _note(script: Script, call: Call, full: str, own: set[str]) -> None:
    name = full.rpartition(".")[2]
    root = call.target.partition(".")[0]
    if _KEEPER.search(full) or _keyword(call.node, "use_ema") == "True":
        script.averages.append(Average(call.target, full, "", call, elsewhere=True))
    elif _AVERAGE.search(name) or name in own or _TEACHER.search(full):
        first = ast.unparse(call.node.args[0]) if call.node.args else _keyword(call.node, "model")
        model = re.sub(r"\.parameters\(\)$", "", first)
        elsewhere = not call.target or root not in ("self", call.target)
        script.averages.append(Average(call.target, full, model, call, elsewhere))
    elif name == "GradScaler":
        script.scalers.add(call.target)
    elif call.target and _OPTIMIZERS.search(full):
        script.optimizers[call.target] = call


def _called(call: Call, updater: Updater) -> Call:
    """A call of a function that averages, as the update it is."""
    given = dict(enumerate(map(ast.unparse, call.node.args)))
    loop = updater.loop
    average = given.get(updater.average) or _keyword(call.node, loop.average)
    model = given.get(updater.model) or _keyword(call.node, loop.model)
    return _update(call.place, replace(loop, average=average, model=model))


def _update(place: Place, loop: Loop) -> Call:
    node = ast.Call(ast.Name("update"), [ast.Name(loop.model)], [])
    return Call(place, loop.average, "update", node, loop=loop)


def _note_by_hand(script: Script) -> None:
    """What loops of the script average, and copies of a model that are called an average."""
    for call in [c for c in script.calls if c.loop is not None or c.method == "deepcopy"]:
        name = call.on if call.loop else call.target
        if not name or name in {one.name for one in script.averages}:
            continue
        made = next((one for one in script.calls if one.target == name), call)
        if call.loop or by_hand.is_called_average(name):
            model = made.arguments[0] if made.method == "deepcopy" and made.arguments else ""
            script.averages.append(Average(name, "by hand", model, made, elsewhere=bool(made.loop)))


def _keyword(node: ast.Call, name: str) -> str:
    return next((ast.unparse(k.value) for k in node.keywords if k.arg == name), "")


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                top = name.name.split(".")[0]
                yield (name.asname, name.name) if name.asname else (top, top)
        elif isinstance(node, ast.ImportFrom):
            yield from ((a.asname or a.name, f"{node.module or ''}.{a.name}") for a in node.names)


def _calls(
    body: Sequence[ast.AST], function: str, inside: tuple[ast.AST, ...], in_finally: bool
) -> Iterator[Call]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{function}.{node.name}".lstrip(".")
            yield from _calls(node.body, name, (), in_finally=False)
            continue
        blocks = [value for _, value in ast.iter_fields(node) if _is_block(value)]
        if loop := by_hand.loop_of(node):
            yield _update(Place(loop.line, function, inside, in_finally), loop)
        yield from _in_expressions(node, Place(0, function, inside, in_finally))
        for block in blocks:
            last = isinstance(node, ast.Try) and block is node.finalbody
            within = inside if isinstance(node, ast.ExceptHandler) else (*inside, node)
            if isinstance(node, ast.If) and block is node.orelse:
                within = inside  # what stands under else is not under the condition
            yield from _calls(block, function, within, in_finally or last)


def _is_block(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], ast.stmt | ast.ExceptHandler)  # pyright: ignore[reportUnknownArgumentType]


def _in_expressions(statement: ast.AST, place: Place) -> Iterator[Call]:
    """Calls in a statement's own expressions, not in the blocks under it; the innermost first."""
    target = ""
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        target = ast.unparse(statement.targets[0] if isinstance(statement, ast.Assign) else statement.target)
    made = _result_calls(getattr(statement, "value", None))
    for _, part in ast.iter_fields(statement):
        for expression in part if isinstance(part, list) else [part]:  # pyright: ignore[reportUnknownVariableType]
            if isinstance(expression, ast.expr | ast.withitem | ast.keyword):
                nodes = [node for node in ast.walk(expression) if isinstance(node, ast.Call)]
                for node in reversed(nodes):
                    here = Place(node.lineno, place.function, place.inside, place.in_finally)
                    yield _call(node, here, target if node in made else "")


def _result_calls(value: object) -> list[ast.AST]:
    """The calls whose result a value is: of ``EMA(model).to(device) if wanted else None`` both."""
    if isinstance(value, ast.IfExp):
        return _result_calls(value.body) + _result_calls(value.orelse)
    if not isinstance(value, ast.Call):
        return []
    same = isinstance(value.func, ast.Attribute) and value.func.attr in _SAME
    return [value, *(_result_calls(value.func.value) if same else [])]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]


def _call(node: ast.Call, place: Place, target: str) -> Call:
    if isinstance(node.func, ast.Attribute):
        return Call(place, ast.unparse(node.func.value), node.func.attr, node, target)
    return Call(place, "", ast.unparse(node.func), node, target)
