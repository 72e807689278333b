"""One function per mistake. Each looks at one average of a script and yields what it finds.

They are silent where they cannot know: a script that hides its loop in a library has none of these lines.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from polyak.doctor.script import Average, Call, Finding, Script

_UPDATES = ("update", "update_parameters", "step")
_APPLIES = ("copy_to", "apply_shadow", "apply_to", "apply")
Check = Callable[[Script, Average], Iterator[Finding]]


def updates(script: Script, average: Average) -> list[Call]:
    """Where an average takes the weights in; only diffusers calls it ``step``."""
    names = _UPDATES if "EMAModel" in average.path else _UPDATES[:2]
    return script.of(average, *names)


def never_updated(script: Script, average: Average) -> Iterator[Finding]:
    """The average stays at the weights it was made with."""
    handed_on = [c for c in script.calls if average.name in c.arguments]
    if not updates(script, average) and not script.of(average, "attach") and not handed_on:
        says = f"{average.name} is made here and never updated: it stays what the model was"
        yield Finding(average.call.line, "never-updated", says, f"{average.name}.update() after each step")


def updated_before_step(script: Script, average: Average) -> Iterator[Finding]:
    """The average takes in the weights of the step before."""
    for update in updates(script, average):
        beside = [s for s in script.steps() if _one_pass(s, update)]
        if beside and all(step.line > update.line for step in beside):
            says = f"{update.on} is updated before {beside[0].said} and averages the weights of the last step"
            yield Finding(update.line, "update-before-step", says, _attach(average))


def updated_per_micro_batch(script: Script, average: Average) -> Iterator[Finding]:
    """Between two steps the same weights are taken in several times: β acts as its k-th power."""
    for update in updates(script, average):
        for step in script.steps():
            if not _one_pass(step, update):
                continue
            gates = [c for c in step.place.conditions if "%" in c or "accum" in c or "sync_gradients" in c]
            if gates and not set(gates) & set(update.place.conditions):
                says = f"{step.said} runs only if {gates[-1]}, {update.on} is updated every time"
                yield Finding(update.line, "update-per-micro-batch", says, _attach(average))
                break
        else:
            yield from _accelerates(update, average)


def _accelerates(update: Call, average: Average) -> Iterator[Finding]:
    around = [re.search(r"\w+\.accumulate\(", _with(node)) for node in update.place.inside]
    if any(around) and not any("sync_gradients" in c for c in update.place.conditions):
        says = f"{update.on} updates for every micro-batch of accumulate()"
        instead = f"if accelerator.sync_gradients: {update.on}.{update.method}(...), or {_attach(average)}"
        yield Finding(update.line, "update-per-micro-batch", says, instead)


def updated_on_skipped_steps(script: Script, average: Average) -> Iterator[Finding]:
    """A GradScaler skips steps whose gradients overflow; the weights of those are taken in again."""
    for update in updates(script, average):
        scaled = [s for s in script.steps() if script.scaled(s) and _one_pass(s, update)]
        if scaled and not any("scale" in condition for condition in update.place.conditions):
            says = f"{scaled[0].said} may skip the step, {update.on} is updated regardless"
            yield Finding(update.line, "update-on-skipped-step", says, _attach(average))


def not_restored(script: Script, average: Average) -> Iterator[Finding]:
    """The average stays in the live model, always or when the evaluation fails."""
    training = {s.place.function for s in script.steps() if s.place.loops}
    instead = f"with {average.name}.average_parameters(): restores on any exit"
    for applied in script.of(average, *_APPLIES):
        into_live = not applied.arguments or applied.arguments[0].startswith(average.model or "?")
        trains_on = bool(applied.place.loops) or applied.place.function not in training
        if not into_live or not trains_on or not training:
            continue
        later = [c for c in script.of(average, "restore") if _same_function(c, applied)]
        later = [c for c in later if c.line > applied.line]
        said = f"{applied.on}.{applied.method}() puts the average into the model"
        if not later:
            yield Finding(applied.line, "not-restored", f"{said}, and nothing takes it out again", instead)
        elif not any(c.place.in_finally for c in later):
            says = f"{said}; if the evaluation raises before line {later[0].line} it stays there"
            yield Finding(applied.line, "restore-not-in-finally", says, instead)


def made_before_moving(script: Script, average: Average) -> Iterator[Finding]:
    """The copy stays on the old device or in the old dtype. polyak follows the model."""
    if average.library == "polyak" or not average.model:
        return
    for move in script.moves(average.model):
        if _same_function(move, average.call) and move.line > average.call.line:
            says = f"{average.name} is made before {move.said} and stays behind"
            instead = f"make it after line {move.line}; polyak.EMA follows the model"
            yield Finding(average.call.line, "made-before-moving", says, instead)
            return


def kept_in_half_precision(script: Script, average: Average) -> Iterator[Finding]:
    """Steps smaller than half the distance of neighbouring numbers vanish: at β ≥ 0.999 nothing moves."""
    if average.library == "polyak" or "ModelEmaV3" in average.path or average.call.has("dtype"):
        return
    for move in script.moves(average.model):
        words = " ".join([move.method, *move.arguments])
        before = _same_function(move, average.call) and move.line < average.call.line
        if before and re.search(r"half|bfloat16|float16", words):
            says = f"{average.name} copies a model in 16 bits, see {move.said}: at β ≥ 0.999 it stands still"
            instead = "polyak.EMA keeps float32, or rounds 16 bits stochastically"
            yield Finding(average.call.line, "half-precision", says, instead)
            return


def state_not_saved(script: Script, average: Average) -> Iterator[Finding]:
    """A run that resumes without the average's state starts the average again."""
    last = average.name.rpartition(".")[2]
    kept = script.of(average, "state_dict", "save", "save_pretrained")
    handed_on = [c for c in script.calls if c.method in ("save", "register_for_checkpointing", "Checkpoint")]
    if kept or any(re.search(rf"\b{last}\b", argument) for c in handed_on for argument in c.arguments):
        return
    for call in script.calls:
        if call.method == "state_dict" and script.optimizes(call.on):
            says = f"a checkpoint to resume from keeps {call.on} and not {average.name}"
            instead = f'add "ema": {average.name}.state_dict()'
            yield Finding(call.line, "state-not-saved", says, instead)
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


def _with(node: ast.AST) -> str:
    items = node.items if isinstance(node, ast.With | ast.AsyncWith) else []
    return ", ".join(map(ast.unparse, items))


ALL: tuple[Check, ...] = (
    never_updated,
    updated_before_step,
    updated_per_micro_batch,
    updated_on_skipped_steps,
    not_restored,
    made_before_moving,
    kept_in_half_precision,
    state_not_saved,
)
