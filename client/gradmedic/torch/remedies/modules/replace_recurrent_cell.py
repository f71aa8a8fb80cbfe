"""The remedy that turns plain recurrent modules into gated ones, which the script calls as before.

The module and its parameters stay the same objects: the module gets another class, and the parameters get other
numbers. `nn.GRU` is called as `nn.RNN` is. An LSTM also has a cell state, which the script does not handle:
`StatefulLSTM` takes and returns the hidden state alone. It finds the cell state of a hidden state by the memory of the
latter, so that a state which the script passes to the next call, even a detached one, goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer

from gradmedic.torch.remedies.base import NotApplicable
from gradmedic.torch.remedies.module_remedy import AppliedPlaces, ModuleContext, WeightRemedy
from gradmedic.torch.remedies.modules.parameters import list_recurrent_weights, make_generator

GATES = {"GRU": 3, "LSTM": 4}
"""Matrices that the cells stack in each weight."""
_RETURNED = "gradmedic.recurrent"
"""Key in the metadata of graph nodes that computed what a recurrent module returned."""
_LARGEST_WALK = 300
"""Nodes of a graph that are visited to find where a changed state comes from."""


class ReplaceRecurrentCell(WeightRemedy):
    """Gives plain recurrent modules the cell `cell`, with weights as torch draws those of a new module."""

    id = "replace_recurrent_cell"
    order = 10
    changes_parameters = True
    needs_eager = True

    def __init__(self, parameters: Mapping[str, Any], context: ModuleContext) -> None:
        super().__init__(parameters, context)
        self._states = CellStates()

    def change_weights(self, model: nn.Module) -> AppliedPlaces:
        """Replace the cells.

        Raises:
            NotApplicable: the weights of a module cannot get another shape.
        """
        changed = _replace_cells(model, str(self.parameters["cell"]), self.context, self._states)
        return AppliedPlaces(changed, "the model has no plain recurrent module")

    @property
    def failure(self) -> str | None:
        """Reason why cell states are lost."""
        return self._states.reason


class CellStates:
    """The cell states that belong to hidden states which a script may pass to the next call.

    All modules of a script share one instance: a decoder may begin with the state of an encoder.
    """

    def __init__(self) -> None:
        self._by_storage: dict[int, tuple[StorageWeakRef, Tensor, int]] = {}
        self.reason: str | None = None
        """Why cell states are lost, if they are."""

    def keep(self, hidden: Tensor, cell: Tensor, *others: Tensor) -> None:
        """Keep the cell state of a hidden state.

        Args:
            hidden: state that a recurrent module returns.
            cell: its cell state.
            others: further tensors that the module returns.
        """
        for tensor in (hidden, *others):
            if tensor.grad_fn is not None:
                _get_metadata(tensor.grad_fn)[_RETURNED] = True
        self._by_storage = {
            key: kept
            for key, kept in self._by_storage.items()
            if not kept[0].expired()  # type: ignore[no-untyped-call]
        }
        reference = StorageWeakRef(hidden.untyped_storage())  # type: ignore[no-untyped-call]
        self._by_storage[reference.cdata] = (reference, cell.contiguous(), hidden._version)

    def find(self, hidden: Tensor) -> Tensor:
        """Return the cell state of a hidden state; zeros at the beginning of a sequence."""
        _, cells, version = self._by_storage.get(hidden.untyped_storage()._cdata, (None, None, -1))
        if cells is not None and version == hidden._version:
            cell = cells.as_strided(hidden.size(), hidden.stride(), hidden.storage_offset())  # hidden may be a view
            return cell if hidden.requires_grad else cell.detach()
        if self._by_storage and torch.is_grad_enabled() and _is_computed_from_returned(hidden):
            self.reason = (
                "the script changes the hidden state between calls, or begins with one of its own, "
                "and no cell state is known for it"
            )
        return torch.zeros_like(hidden)

    def __reduce__(self) -> tuple[type[CellStates], tuple[()]]:
        return CellStates, ()  # a copy has none


def _get_metadata(node: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = node.metadata  # torch declares it as a method
    return metadata


def _is_computed_from_returned(hidden: Tensor) -> bool:
    """Whether a state is computed from what a recurrent module returned."""
    if hidden.grad_fn is None:
        # Without a graph, zeros are the beginning of a sequence; others are a state that was detached and changed.
        return not hidden.requires_grad and bool(hidden.count_nonzero())
    waiting, seen = deque([hidden.grad_fn]), {hidden.grad_fn}
    while waiting and len(seen) < _LARGEST_WALK:
        node = waiting.popleft()
        if _RETURNED in _get_metadata(node):
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


def _replace_cells(model: nn.Module, cell: str, context: ModuleContext, states: CellStates) -> list[str]:
    """Give every plain recurrent module the cell `GRU` or `LSTM`; return the names of the modules.

    The weights are drawn as torch draws those of a new module, from generators of their own.

    Raises:
        NotApplicable: a module shares or computes its weights, or an optimizer has moments of them.
    """
    changed = []
    for path, module in _list_plain_recurrent(model):
        _check_parameters(path, module, model, context.optimizers)
        is_cell = isinstance(module, nn.RNNCellBase)
        if cell == "GRU":
            new_class: type[nn.Module] = nn.GRUCell if is_cell else nn.GRU
        else:
            new_class = StatefulLSTMCell if is_cell else StatefulLSTM
            module._states = states
        if not is_cell:
            module.mode = cell
        bound = module.hidden_size**-0.5
        for name, parameter in module.named_parameters(recurse=False):
            shape = (GATES[cell] * len(parameter), *parameter.shape[1:])
            generator = make_generator(context.seed, f"{path}.{name}")
            drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            parameter.grad = None
            parameter.data = drawn.to(parameter)
        module.__class__ = new_class  # type: ignore[assignment]  # its call is the same
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
        changed.append(path)
    return changed


def _list_plain_recurrent(model: nn.Module) -> Iterator[tuple[str, nn.RNN | nn.RNNCell]]:
    for path, module in model.named_modules():
        if isinstance(module, (nn.RNN, nn.RNNCell)) and type(module) in (nn.RNN, nn.RNNCell):
            yield path, module


def _check_parameters(
    path: str, module: nn.RNN | nn.RNNCell, model: nn.Module, optimizers: Sequence[Optimizer]
) -> None:
    own = {id(p) for p in module.parameters(recurse=False)}
    for parameter in module.parameters():
        if any(optimizer.state.get(parameter) for optimizer in optimizers):
            raise NotApplicable(f"the optimizer has moments of the weights of {path}, which get another shape")
    for other in model.modules():
        if other is not module and any(id(p) in own for p in other.parameters(recurse=False)):
            raise NotApplicable(f"{path} shares its weights with another module")
    if any(name not in module._parameters for name in list_recurrent_weights(module)):
        raise NotApplicable(f"the weights of {path} are computed from others")
