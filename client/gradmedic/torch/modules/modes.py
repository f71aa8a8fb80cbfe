"""Leaves function modes that were not entered last.

One idea: modes are a stack, and a hook that leaves one cannot know what was entered since: another mode of ours, or one
of the script's. What lies above is taken off, and put back.
"""

from __future__ import annotations

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode


def leave(mode: TorchFunctionMode) -> None:
    """Leave a mode wherever in the stack it is; one that is not there any more is left already."""
    if not any(each is mode for each in _get_current_function_mode_stack()):  # type: ignore[no-untyped-call]
        return
    above = []
    while (top := _pop_mode()) is not mode:  # type: ignore[no-untyped-call]
        above.append(top)
    for each in reversed(above):
        _push_mode(each)  # type: ignore[no-untyped-call]
