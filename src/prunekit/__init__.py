"""prunekit makes causal language models smaller and tells honestly what that costs.

Layers are counted from 0 in the numbering of the base model; a block is half-open, [start, end).
"""

from importlib import import_module
from typing import Any

# Where each public name lives. Imported when first asked for: torch takes seconds.
_NAMES = {
    "Checkpoint": "model.checkpoint",
    "Criterion": "criteria._criterion",
    "Drop": "plan.edits",
    "Family": "model.family",
    "InputError": "errors",
    "Fold": "plan.edits",
    "Merge": "plan.edits",
    "Mute": "plan.edits",
    "Observer": "model.walk",
    "Plan": "plan.plan",
    "Replace": "plan.edits",
    "Scores": "plan.scores",
    "Text": "text.packing",
    "attach": "verbs.heal",
    "choose": "plan.choose",
    "compare": "verbs.compare",
    "cut": "verbs.cut",
    "demo": "verbs.demo",
    "evaluate": "verbs.evaluate",
    "fold": "verbs.fold",
    "heal": "verbs.heal",
    "load": "model.load",
    "load_text": "text.packing",
    "prune": "verbs.prune",
    "read_plan": "plan.plan",
    "read_scores": "plan.scores",
    "score": "verbs.score",
    "search": "verbs.search",
    "show": "verbs.show",
    "teach": "verbs.teach",
    "walk": "model.walk",
}
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    return getattr(import_module(f"prunekit.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_NAMES)
