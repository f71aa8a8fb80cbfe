"""Leaves function modes of torch that were not entered last.

Modes are a stack, and other modes may be entered before a hook leaves its own: modes of another hook or of the script.
Those above are taken off the stack and put back.
"""

from __future__ import annotations

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode


def leave_mode(mode: TorchFunctionMode) -> None:
    """Leave a mode, wherever in the stack it is. Do nothing if it is not there."""
    if not any(entered is mode for entered in _get_current_function_mode_stack()):  # type: ignore[no-untyped-call]
        return
    above = []
    while (top := _pop_mode()) is not mode:  # type: ignore[no-untyped-call]
        above.append(top)
    for mode_above in reversed(above):
        _push_mode(mode_above)  # type: ignore[no-untyped-call]
