"""Wraps torch's loss functions, log-probabilities and `backward` while something observes the loss of a training.

The wrappers call the originals with the same arguments, and show the call to the open observers. They go with the last
one that observes. If `torch.compile` has compiled anything, those of loss functions stay as long as a watch is open: it
would compile every caller again when a function changes. A compiler reads the first condition of a wrapper as a
constant, and sees nothing else of it.

A script may call a reference that it took before (`from torch.nn.functional import mse_loss`). Such a call is read from
the graph when gradients are computed of its result.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, MultivariateNormal, Normal
from torch.nn import functional

from gradmedic.torch.loss_graph import NodeId, identify
from gradmedic.torch.loss_nodes import read_call
from gradmedic.torch.optimizer_hooks import keep_out_of_graphs, leave_uncompiled
from gradmedic.torch.recorded_code import is_recorded

logger = logging.getLogger("gradmedic")

LOSS_KIND_OF: dict[str, str] = {
    "cross_entropy": "cross_entropy",
    "nll_loss": "negative_log_likelihood",
    "gaussian_nll_loss": "negative_log_likelihood",
    "poisson_nll_loss": "negative_log_likelihood",
    "binary_cross_entropy": "binary_cross_entropy",
    "binary_cross_entropy_with_logits": "binary_cross_entropy",
    "multilabel_soft_margin_loss": "binary_cross_entropy",
    "mse_loss": "squared_error",
    "l1_loss": "absolute_error",
    "smooth_l1_loss": "huber",
    "huber_loss": "huber",
    "kl_div": "kl_divergence",
    "ctc_loss": "ctc",
    "hinge_embedding_loss": "margin",
    "margin_ranking_loss": "margin",
    "multi_margin_loss": "margin",
    "multilabel_margin_loss": "margin",
    "soft_margin_loss": "margin",
    "cosine_embedding_loss": "margin",
    "triplet_margin_loss": "margin",
    "triplet_margin_with_distance_loss": "margin",
}
"""The kind of each loss function of `torch.nn.functional` that is wrapped, by its name."""

_LABEL_LOSSES = frozenset({"cross_entropy", "nll_loss"})
"""Loss functions that ignore one value of their targets. Their wrappers stay while something reads labels."""
_TARGET_PLACE, _IGNORE_INDEX_PLACE = 1, 4
"""Places of these arguments among the positional ones."""
_IGNORE_INDEX = -100
"""The value that they ignore by default."""

DISTRIBUTION_KIND_OF: dict[type[Distribution], str] = {
    Categorical: "cross_entropy",
    Bernoulli: "binary_cross_entropy",
    Normal: "negative_log_likelihood",
    MultivariateNormal: "negative_log_likelihood",
    Independent: "negative_log_likelihood",
}
"""The kind of the negative log-probability of each distribution whose calls are wrapped."""


class _Replaced(NamedTuple):
    """An attribute of torch that is replaced."""

    owner: Any
    name: str
    original: Any
    wrapper: Any


class CallObserver(Protocol):
    """Sees the calls that a training makes to compute its loss, on the thread of the training."""

    optimizers: int
    """Number of the optimizers of its watch."""

    def note_loss(self, function: str, arguments: dict[str, Any], result: Tensor) -> None:
        """See a call of a loss function, with all its arguments by name."""

    def note_log_probability(self, kind: str, result: Tensor, *, is_own_sample: bool) -> None:
        """See the log-probability of a value that has no gradient, as that of a reparameterized sample has.

        Args:
            kind: kind of the loss that its negative is.
            result: the log-probability.
            is_own_sample: whether the value was drawn from the same distribution object.
        """

    def before_backward(self, roots: list[Tensor]) -> None:
        """See the tensors of which gradients are about to be computed."""


class LabelReader(Protocol):
    """Sees the targets of losses over classes during the whole training."""

    def note_labels(self, target: Tensor, ignore_index: int) -> None:
        """See the targets of a call, and the value that the loss ignores."""


_label_readers: list[LabelReader] = []
_open: list[CallObserver] = []
"""What needs the wrappers."""
_observers: list[CallObserver] = []
"""Those of them that still observe."""
_replaced: list[_Replaced] = []
"""The attributes of torch that are replaced."""
_signatures: dict[str, inspect.Signature] = {}
_nesting: list[str] = []
"""The loss functions and log-probabilities that run now: those that others call are not seen."""
_noted: deque[NodeId | None] = deque(maxlen=256)
"""Results of the calls that were seen last."""
_last_samples: deque[tuple[weakref.ref[object], weakref.ref[Tensor]]] = deque(maxlen=256)
"""Distributions, and what was drawn from each."""


def begin_observing(observer: CallObserver) -> None:
    """Show calls to an observer until `stop_observing`, and keep the wrappers until `end_observing`."""
    _open.append(observer)
    _observers.append(observer)
    _wrap_all()


def count_optimizers() -> int:
    """Return the number of optimizers that all watches of the process observe."""
    return sum(observer.optimizers for observer in _open)


def stop_observing(observer: CallObserver) -> None:
    """Show no more calls to an observer."""
    if observer in _observers:
        _observers.remove(observer)
    if not _observers:
        _last_samples.clear()
        keeps_most = has_compiled()
        _restore(lambda owner: owner is torch.autograd or not keeps_most)


def end_observing(observer: CallObserver) -> None:
    """Stop observing. After the last observer, torch's functions are the originals again."""
    stop_observing(observer)
    if observer in _open:
        _open.remove(observer)
    if not _open:
        _restore(lambda _owner: True)


def begin_reading_labels(reader: LabelReader) -> None:
    """Show the targets of losses over classes to a reader until `end_reading_labels`."""
    _label_readers.append(reader)
    _wrap_losses(_LABEL_LOSSES)


def end_reading_labels(reader: LabelReader) -> None:
    """Show no more targets. After the last reader and observer, torch's functions are the originals again."""
    if reader in _label_readers:
        _label_readers.remove(reader)
    if not _label_readers and not _observers and not (_open and has_compiled()):
        _restore(lambda owner: owner is functional)


def _restore(is_chosen: Callable[[Any], bool]) -> None:
    for each in _replaced.copy():
        is_needed = bool(_label_readers) and each.owner is functional and each.name in _LABEL_LOSSES
        if is_chosen(each.owner) and not is_needed:
            if getattr(each.owner, each.name) is each.wrapper:  # else something else has wrapped the wrapper
                setattr(each.owner, each.name, each.original)
            _replaced.remove(each)


def has_compiled() -> bool:
    """Whether `torch.compile` has compiled anything in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters.get("frames"))


def _wrap_all() -> None:
    """Replace everything that is not replaced already."""
    _wrap_losses(LOSS_KIND_OF)
    for distribution, kind in DISTRIBUTION_KIND_OF.items():
        _replace(distribution, "log_prob", functools.partial(_wrap_log_probability, kind))
        if "sample" in vars(distribution):
            _replace(distribution, "sample", _wrap_sample)
    _replace(torch.autograd, "backward", _wrap_backward)


def _wrap_losses(names: Iterable[str]) -> None:
    for name in names:
        if name not in _signatures:
            _signatures[name] = inspect.signature(getattr(functional, name))
        _replace(functional, name, functools.partial(_wrap_loss, name))


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    if any(each.owner is owner and each.name == name for each in _replaced):
        return
    original = vars(owner)[name]
    wrapper = wrap(original)
    wrapper.__prepare_scriptable__ = lambda: original  # `torch.jit.script` compiles what this returns
    _replaced.append(_Replaced(owner, name, original, wrapper))
    setattr(owner, name, wrapper)


def _is_observed() -> bool:
    return bool(_observers) and not _nesting and torch.is_grad_enabled() and not is_recorded()


def _wrap_loss(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def loss(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not (_observers or _label_readers):
            return original(*args, **kwargs)
        if _label_readers and name in _LABEL_LOSSES:
            _show_labels(args, kwargs)
        if not _observers or not _is_observed():
            return original(*args, **kwargs)
        result = _call_nested(name, original, args, kwargs)
        if isinstance(result, Tensor) and result.requires_grad:
            try:
                bound = _signatures[name].bind(*args, **kwargs)
                bound.apply_defaults()
                _noted.append(identify(result.grad_fn))
                _show(lambda observer: observer.note_loss(name, bound.arguments, result))
            except Exception as error:  # must not reach the script
                _warn(error)
        return result

    return loss


def _show_labels(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    target = args[_TARGET_PLACE] if len(args) > _TARGET_PLACE else kwargs.get("target")
    ignored = (
        args[_IGNORE_INDEX_PLACE] if len(args) > _IGNORE_INDEX_PLACE else kwargs.get("ignore_index", _IGNORE_INDEX)
    )
    if not isinstance(target, Tensor) or not torch.is_grad_enabled() or is_recorded():
        return
    for reader in _label_readers.copy():
        try:
            reader.note_labels(target, int(ignored))
        except Exception as error:  # must not reach the script
            _warn(error)
            end_reading_labels(reader)


def _wrap_log_probability(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def log_prob(self: Distribution, value: Any) -> Any:
        if torch.compiler.is_compiling() or not _observers or not _is_observed():
            return original(self, value)
        result = _call_nested("log_prob", original, (self, value), {})
        is_fixed = isinstance(value, Tensor) and not value.requires_grad
        if is_fixed and isinstance(result, Tensor) and result.requires_grad:
            is_own = any(owner() is self and sample() is value for owner, sample in _last_samples)
            _show(lambda observer: observer.note_log_probability(kind, result, is_own_sample=is_own))
        return result

    return log_prob


def _wrap_sample(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def sample(self: Distribution, *args: Any, **kwargs: Any) -> Any:
        drawn = original(self, *args, **kwargs)
        if torch.compiler.is_compiling() or not _observers or is_recorded():
            return drawn
        _last_samples.append((weakref.ref(self), weakref.ref(drawn)))
        return drawn

    return sample


def _wrap_backward(original: Callable[..., Any]) -> Callable[..., Any]:
    show = keep_out_of_graphs(_show_roots)

    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if _observers:
            show(tensors)
        return original(tensors, *args, **kwargs)

    return leave_uncompiled(backward)


def _show_roots(tensors: Any) -> None:
    roots = [tensors] if isinstance(tensors, Tensor) else tensors
    if _is_observed() and isinstance(roots, (list, tuple)):
        for root in roots:
            _show_unseen_call(root)
        _show(lambda observer: observer.before_backward(list(roots)))


def _show_unseen_call(root: Tensor) -> None:
    """Show the call of a loss function that computed a root, if no wrapper has seen it."""
    try:
        call = read_call(root, _noted)
        if call is None:
            return
        result = root if call.is_root else _call_nested(call.function, call.repeat, (), {})
    except Exception as error:  # must not reach the script
        _warn(error)
        return
    _show(lambda observer: observer.note_loss(call.function, call.arguments, result))


def _call_nested(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an original so that the wrapped functions that it calls itself are not seen."""
    _nesting.append(name)
    try:
        return original(*args, **kwargs)
    finally:
        _nesting.pop()


def _show(note: Callable[[CallObserver], None]) -> None:
    for observer in _observers.copy():
        try:
            note(observer)
        except Exception as error:  # must not reach the script
            _warn(error)
            stop_observing(observer)


def _warn(error: Exception) -> None:
    logger.warning("gradmedic: what the loss means could not be observed: %r", error)
