"""One function per mistake. Each examines one average of a script and yields findings.

They report nothing when unsure: a script whose loop is in a library has none of these lines.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from polyak.doctor.script import Average, Call, Finding, Script

_UPDATES = ("update", "update_parameters", "step")
_APPLIES = ("copy_to", "apply_shadow", "apply_to", "apply")
# Names of methods that are not updates; other libraries' updates have various names.
_READS = re.compile(
    r"state_dict|parameters|named_\w+|buffers|modules|to|cuda|cpu|eval|train|float|half|"
    r"requires_grad_|save\w*|store|restore|copy_to|apply\w*|average_parameters|metrics|observe|reset|verify"
)
Check = Callable[[Script, Average], Iterator[Finding]]


def updates(script: Script, average: Average) -> list[Call]:
    """The calls that update an average; diffusers and polyak.paddle call it ``step``."""
    steps = "EMAModel" in average.path or average.path.startswith("polyak.paddle.")
    return script.of(average, *(_UPDATES if steps else _UPDATES[:2]))


def never_updated(script: Script, average: Average) -> Iterator[Finding]:
    """The average stays at the weights it was made with."""
    if average.elsewhere or script.hands_on(average):
        return
    if not any(not _READS.fullmatch(call.method) for call in script.on(average)):
        message = f"{average.name} is made here and never updated: it stays what the model was"
        yield Finding(average.call.line, "never-updated", message, f"{average.name}.update() after each step")


def counted_twice(script: Script, average: Average) -> Iterator[Finding]:
    """``attach`` follows the optimizer already; ``update``, or attaching again, counts each step again."""
    attached = [] if average.elsewhere else script.of(average, "attach")
    for first in attached[:1]:
        handles = {call.target for call in attached} - {""}
        if any(call.method == "remove" and call.on in handles for call in script.calls):
            return
        again = [c for c in attached[1:] if c.arguments == first.arguments]
        for call in (*updates(script, average), *again):
            message = f"{first.said} counts the steps already; {call.on}.{call.method}() counts them again"
            yield Finding(
                call.line, "counted-twice", message, f"leave out either {first.method} or {call.method}"
            )


def updated_while_applied(script: Script, average: Average) -> Iterator[Finding]:
    """The average is averaged with itself, which has no effect."""
    for update in updates(script, average):
        if any(f"{average.name}.average_parameters(" in _with(node) for node in update.place.inside):
            message = f"{update.on} is updated while the model holds the average"
            yield Finding(
                update.line, "updated-while-applied", message, "update before the block, after the step"
            )


def weights_turned_round(script: Script, average: Average) -> Iterator[Finding]:
    """β belongs to the average and 1-β to the model; a library's decay is β, mmengine's momentum is 1-β."""
    for update in updates(script, average):
        if update.loop is not None and update.loop.swapped:
            message = f"{average.name} takes 1-β of itself and β of the model: it all but is the model"
            yield Finding(
                update.loop.line, "weights-turned-round", message, f"{average.name}.lerp_(model, 1 - β)"
            )
    if "." not in average.path:  # a class of the script's own, whose words may mean something else
        return
    momentum = average.library == "mmengine" or ".mmengine." in average.path
    word = "momentum" if momentum else "decay" if not average.call.has("beta") else "beta"
    given = [_number(k.value) for k in average.call.node.keywords if k.arg == word]
    if given and given[0] is not None and (given[0] > 0.5 if momentum else 0 < given[0] < 0.5):
        message = f"{word}={given[0]:g} weighs the average with {1 - given[0] if momentum else given[0]:g}"
        yield Finding(average.call.line, "weights-turned-round", message, f"{word}={1 - given[0]:g}")


def sum_thrown_away(script: Script, average: Average) -> Iterator[Finding]:
    """``for a, p in …: a = β·a + (1-β)·p`` assigns to the loop's variable and leaves the tensor unchanged."""
    for update in updates(script, average):
        if update.loop is not None and update.loop.rebinds:
            message = f"the sum is given to the loop's own variable, and {average.name} never changes"
            yield Finding(update.loop.line, "sum-thrown-away", message, "write in place: a.lerp_(p, 1 - β)")


def trained_itself(script: Script, average: Average) -> Iterator[Finding]:
    """An optimizer that was given the average's tensors trains them, and not the model."""
    last = re.escape(average.name.rpartition(".")[2])
    for name, made in script.optimizers.items():
        if average.name and any(re.search(rf"\b{last}\b", one) for one in made.arguments):
            message = f"{name} is given the tensors of {average.name}: it trains the average"
            fix = f"{name} = ...({average.model or 'model'}.parameters())"
            yield Finding(made.line, "trained-itself", message, fix)


def made_before_loading(script: Script, average: Average) -> Iterator[Finding]:
    """The average starts at the previous weights, and keeps a part of them for thousands of steps."""
    if not average.model or script.hands_on(average):
        return
    if script.of(average, "load_state_dict", "load", "reset", "set", "resume"):
        return
    for load in script.calls:
        late = load.line > average.call.line and _same_function(load, average.call) and not load.place.loops
        taught = any(step.line < load.line for step in script.steps())
        if load.on == average.model and load.method == "load_state_dict" and late and not taught:
            message = f"{average.name} is made before {load.said} and begins at the weights of before"
            yield Finding(
                average.call.line, "made-before-loading", message, f"make it after line {load.line}"
            )
            return


def updated_before_step(script: Script, average: Average) -> Iterator[Finding]:
    """The average is updated with the weights of the previous step."""
    for update in updates(script, average):
        beside = [s for s in script.steps() if _one_pass(s, update)]
        if beside and all(step.line > update.line for step in beside):
            message = (
                f"{update.on} is updated before {beside[0].said} and averages the weights of the last step"
            )
            yield Finding(update.line, "update-before-step", message, _attach(average))


def updated_per_micro_batch(script: Script, average: Average) -> Iterator[Finding]:
    """Between two steps the same weights are averaged several times: β acts as its k-th power."""
    for update in updates(script, average):
        for step in script.steps():
            if not _one_pass(step, update):
                continue
            gates = [c for c in step.place.conditions if "%" in c or "accum" in c or "sync_gradients" in c]
            if gates and not set(gates) & set(update.place.conditions):
                message = f"{step.said} runs only if {gates[-1]}, {update.on} is updated every time"
                yield Finding(update.line, "update-per-micro-batch", message, _attach(average))
                break
        else:
            yield from _accelerates(update, average)


def _accelerates(update: Call, average: Average) -> Iterator[Finding]:
    around = [re.search(r"\w+\.accumulate\(", _with(node)) for node in update.place.inside]
    if any(around) and not any("sync_gradients" in c for c in update.place.conditions):
        message = f"{update.on} updates for every micro-batch of accumulate()"
        fix = f"if accelerator.sync_gradients: {update.on}.{update.method}(...), or {_attach(average)}"
        yield Finding(update.line, "update-per-micro-batch", message, fix)


def updated_on_skipped_steps(script: Script, average: Average) -> Iterator[Finding]:
    """A GradScaler skips steps whose gradients overflow; unchanged weights are then averaged again."""
    for update in updates(script, average):
        scaled = [s for s in script.steps() if script.scaled(s) and _one_pass(s, update)]
        if scaled and not any("scale" in condition for condition in update.place.conditions):
            message = f"{scaled[0].said} may skip the step, {update.on} is updated regardless"
            yield Finding(update.line, "update-on-skipped-step", message, _attach(average))


def not_restored(script: Script, average: Average) -> Iterator[Finding]:
    """The average stays in the live model, always or when the evaluation fails."""
    training = {s.place.function for s in script.steps() if s.place.loops}
    fix = f"with {average.name}.average_parameters(): restores on any exit"
    for applied in script.of(average, *_APPLIES):
        into_live = not applied.arguments or applied.arguments[0].startswith(average.model or "?")
        trains_on = bool(applied.place.loops) or applied.place.function not in training
        if not into_live or not trains_on or not training or _ends_its_loop(applied):
            continue
        later = [c for c in script.of(average, "restore") if _same_function(c, applied)]
        later = [c for c in later if c.line > applied.line]
        said = f"{applied.on}.{applied.method}() puts the average into the model"
        if not later:
            yield Finding(applied.line, "not-restored", f"{said}, and nothing takes it out again", fix)
        elif not any(c.place.in_finally for c in later):
            message = f"{said}; if the evaluation raises before line {later[0].line} it stays there"
            yield Finding(applied.line, "restore-not-in-finally", message, fix)


def _ends_its_loop(call: Call) -> bool:
    """Whether a call is the last of a loop's turn: training goes on from there, as SwitchEMA means it."""
    for loop in call.place.loops[-1:]:
        last: ast.AST = loop
        while isinstance(last, ast.For | ast.AsyncFor | ast.While | ast.If | ast.With):
            last = last.body[-1]
        return getattr(last, "lineno", 0) == call.line
    return False


def made_before_moving(script: Script, average: Average) -> Iterator[Finding]:
    """The copy stays on the old device or in the old dtype. polyak follows the model."""
    if average.library == "polyak" or not average.model:
        return
    for move in script.moves(average.model):
        if _same_function(move, average.call) and move.line > average.call.line:
            message = f"{average.name} is made before {move.said} and stays behind"
            fix = f"make it after line {move.line}; polyak.EMA follows the model"
            yield Finding(average.call.line, "made-before-moving", message, fix)
            return


def kept_in_half_precision(script: Script, average: Average) -> Iterator[Finding]:
    """Steps smaller than half the spacing of representable numbers vanish: at β ≥ 0.999 nothing moves."""
    if average.library == "polyak" or "ModelEmaV3" in average.path or average.call.has("dtype"):
        return
    for move in script.moves(average.model):
        words = " ".join([move.method, *move.arguments])
        before = _same_function(move, average.call) and move.line < average.call.line
        if before and re.search(r"half|bfloat16|float16", words):
            message = (
                f"{average.name} copies a model in 16 bits, see {move.said}: at β ≥ 0.999 it stands still"
            )
            fix = "polyak.EMA keeps float32, or rounds 16 bits stochastically"
            yield Finding(average.call.line, "half-precision", message, fix)
            return


def state_not_saved(script: Script, average: Average) -> Iterator[Finding]:
    """A run that resumes without the average's state starts the average again."""
    last = average.name.rpartition(".")[2]
    if not average.elsewhere and not script.of(average, "attach", *_UPDATES):
        return
    kept = script.of(average, "state_dict", "save", "save_pretrained")
    handed_on = [c for c in script.calls if c.method in ("save", "register_for_checkpointing", "Checkpoint")]
    if kept or any(re.search(rf"\b{last}\b", argument) for c in handed_on for argument in c.arguments):
        return
    for call in script.calls:
        if call.method == "state_dict" and script.optimizes(call.on):
            message = f"a checkpoint to resume from keeps {call.on} and not {average.name}"
            fix = f'add "ema": {average.name}.state_dict()'
            yield Finding(call.line, "state-not-saved", message, fix)
            return


def _attach(average: Average) -> str:
    if average.library == "polyak":
        return f"{average.name}.attach(optimizer) follows the steps really taken; drop update() then"
    return "update right after the step that was taken; polyak's ema.attach(optimizer) does so by itself"


def _one_pass(step: Call, update: Call) -> bool:
    """Whether both run in one pass of the same loop."""
    loops = step.place.loops, update.place.loops
    return _same_function(step, update) and bool(loops[0] and loops[1]) and loops[0][-1] is loops[1][-1]


def _same_function(a: Call, b: Call) -> bool:
    return a.place.function == b.place.function


def _number(node: ast.expr) -> float | None:
    return (
        float(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, int | float) else None
    )


def _with(node: ast.AST) -> str:
    items = node.items if isinstance(node, ast.With | ast.AsyncWith) else []
    return ", ".join(map(ast.unparse, items))


ALL: tuple[Check, ...] = (
    never_updated,
    counted_twice,
    updated_while_applied,
    weights_turned_round,
    sum_thrown_away,
    trained_itself,
    made_before_loading,
    updated_before_step,
    updated_per_micro_batch,
    updated_on_skipped_steps,
    not_restored,
    made_before_moving,
    kept_in_half_precision,
    state_not_saved,
)
