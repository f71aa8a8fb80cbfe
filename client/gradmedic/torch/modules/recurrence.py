"""Turns plain recurrent modules into gated ones under the same call.

One idea: the module and its parameters stay the objects that they are; the module gets another class, and the
parameters other numbers. `nn.GRU` is called as `nn.RNN` is. An LSTM also carries a cell state, which the script does
not know of: `StatefulLSTM` takes and returns the hidden state alone and finds the cell state that belongs to it by the
memory that it lies in, so that a state that is handed back, also detached, goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer

from gradmedic.torch.modules.initialization import recurrent_weights_of, seed_of
from gradmedic.torch.remedies import NotApplicable

GATES = {"GRU": 3, "LSTM": 4}
_MARK = "gradmedic.recurrent"
"""In the metadata of a graph's nodes: a recurrent module returned what they computed."""
_LARGEST_WALK = 300
"""Nodes of a graph that are looked at for where a changed state comes from."""


class CellStates:
    """The cell states that belong to hidden states which a script may hand back.

    One for all modules of a script: a decoder may begin with an encoder's state.
    """

    def __init__(self) -> None:
        self._by_storage: dict[int, tuple[StorageWeakRef, Tensor, int]] = {}
        self.reason: str | None = None
        """Why cell states are lost, if they are."""

    def keep(self, hidden: Tensor, cell: Tensor, *others: Tensor) -> None:
        """Remember the cell state that belongs to a hidden state, and what else came with them."""
        for tensor in (hidden, *others):
            if tensor.grad_fn is not None:
                _metadata_of(tensor.grad_fn)[_MARK] = True
        self._by_storage = {
            key: kept
            for key, kept in self._by_storage.items()
            if not kept[0].expired()  # type: ignore[no-untyped-call]
        }
        reference = StorageWeakRef(hidden.untyped_storage())  # type: ignore[no-untyped-call]
        self._by_storage[reference.cdata] = (reference, cell.contiguous(), hidden._version)

    def find(self, hidden: Tensor) -> Tensor:
        """Return the cell state of a hidden state: zero at the beginning of a sequence."""
        found = self._by_storage.get(hidden.untyped_storage()._cdata)
        if found is not None and found[2] == hidden._version:
            cell = found[1].as_strided(hidden.size(), hidden.stride(), hidden.storage_offset())  # the same part of it
            return cell if hidden.requires_grad else cell.detach()
        if self._by_storage and torch.is_grad_enabled() and _is_made_of_others(hidden):
            self.reason = (
                "the script changes the hidden state between calls, or begins with one of its own, "
                "and no cell state is known for it"
            )
        return torch.zeros_like(hidden)

    def __reduce__(self) -> tuple[type[CellStates], tuple[()]]:
        return CellStates, ()  # a copy begins anew


def _metadata_of(node: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = node.metadata  # which torch declares as a method
    return metadata


def _is_made_of_others(hidden: Tensor) -> bool:
    """Whether a state was made of what a recurrent module returned."""
    if hidden.grad_fn is None:
        # Without a graph it is a beginning, as zeros are, or a state that was detached and changed.
        return not hidden.requires_grad and bool(hidden.count_nonzero())
    waiting, seen = deque([hidden.grad_fn]), {hidden.grad_fn}
    while waiting and len(seen) < _LARGEST_WALK:
        node = waiting.popleft()
        if _MARK in _metadata_of(node):
            return True
        for source, _ in node.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                waiting.append(source)
    return False


class StatefulLSTM(nn.LSTM):
    """An LSTM that is called as `nn.RNN` is."""

    _states: CellStates

    def forward(  # type: ignore[override]
        self,
        input: Tensor | PackedSequence,  # noqa: A002  # torch's name
        hx: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Return the outputs and the hidden state."""
        state = None if hx is None else (hx, self._states.find(hx))
        output, (hidden, cell) = super().forward(input, state)
        self._states.keep(hidden, cell, output.data if isinstance(output, PackedSequence) else output)
        return output, hidden


class StatefulLSTMCell(nn.LSTMCell):
    """An LSTM cell that is called as `nn.RNNCell` is."""

    _states: CellStates

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[override]  # noqa: A002
        """Return the hidden state."""
        state = None if hx is None else (hx, self._states.find(hx))
        hidden, cell = super().forward(input, state)
        self._states.keep(hidden, cell)
        return hidden


def replace_cells(model: nn.Module, cell: str, seed: int, optimizers: list[Optimizer], states: CellStates) -> list[str]:
    """Turn every plain recurrent module into one with the given cell; return their names.

    The weights are drawn as torch draws those of a new module, from generators of their own.

    Raises:
        NotApplicable: a module's parameters are sharded, shared, not there yet, or have moments in an optimizer.
    """
    found = []
    for path, module in _plain_recurrent(model):
        _check_parameters(path, module, model, optimizers)
        is_cell = isinstance(module, nn.RNNCellBase)
        if cell == "GRU":
            kind: type[nn.Module] = nn.GRUCell if is_cell else nn.GRU
        else:
            kind = StatefulLSTMCell if is_cell else StatefulLSTM
            module._states = states
        if not is_cell:
            module.mode = cell
        bound = module.hidden_size**-0.5
        for name, parameter in module.named_parameters(recurse=False):
            shape = (GATES[cell] * len(parameter), *parameter.shape[1:])
            generator = torch.Generator().manual_seed(seed_of(seed, f"{path}.{name}"))
            drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            parameter.grad = None
            parameter.data = drawn.to(parameter)
        module.__class__ = kind  # type: ignore[assignment]  # its call is the same
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
        found.append(path)
    return found


def _plain_recurrent(model: nn.Module) -> Iterator[tuple[str, nn.RNN | nn.RNNCell]]:
    for path, module in model.named_modules():
        if isinstance(module, (nn.RNN, nn.RNNCell)) and type(module) in (nn.RNN, nn.RNNCell):
            yield path, module


def _check_parameters(path: str, module: nn.RNN | nn.RNNCell, model: nn.Module, optimizers: list[Optimizer]) -> None:
    own = {id(p) for p in module.parameters(recurse=False)}
    for parameter in module.parameters():
        if is_lazy(parameter) or hasattr(parameter, "device_mesh"):
            raise NotApplicable(f"the weights of {path} are sharded, or built at the first call only")
        if any(optimizer.state.get(parameter) for optimizer in optimizers):
            raise NotApplicable(f"the optimizer has moments of the weights of {path}, which get another shape")
    for other in model.modules():
        if other is not module and any(id(p) in own for p in other.parameters(recurse=False)):
            raise NotApplicable(f"{path} shares its weights with another module")
    if any(name not in module._parameters for name in recurrent_weights_of(module)):
        raise NotApplicable(f"the weights of {path} are computed from others")
