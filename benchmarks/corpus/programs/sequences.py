"""Recurrent networks and transformers: recall, adding, regression, classification, copying, language models."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.corpus.ledger import Ledger, initialize
from benchmarks.corpus.program import Program
from benchmarks.corpus.programs.datasets import dataset, python_text, unigram_entropy
from benchmarks.corpus.programs.modules import ACTIVATIONS, accuracy_skill, normalization, variance_skill

SYMBOLS = 4


class Recurrence(nn.Module):
    """A recurrent layer `[batch, time, in] -> [batch, time, width]`; `rnn-ACTIVATION`, `gru` or `lstm`."""

    def __init__(self, cell: str, inputs: int, width: int, layers: int = 1) -> None:
        super().__init__()
        name, _, activation = cell.partition("-")
        self.width, self.layers = width, layers
        self.core: nn.RNN | nn.GRU | nn.LSTM | None = None
        self.activation = activation or None
        if name == "gru":
            self.core = nn.GRU(inputs, width, layers, batch_first=True)
        elif name == "lstm":
            self.core = nn.LSTM(inputs, width, layers, batch_first=True)
        elif activation in ("tanh", "relu"):
            self.core = nn.RNN(inputs, width, layers, nonlinearity=activation, batch_first=True)
        else:
            like = nn.RNN(inputs, width, batch_first=True)
            self.weight_ih_l0, self.weight_hh_l0 = like.weight_ih_l0, like.weight_hh_l0
            self.bias_ih_l0, self.bias_hh_l0 = like.bias_ih_l0, like.bias_hh_l0

    def add_to_ledger(self, ledger: Ledger, name: str) -> None:
        """Add the tensors to the ledger."""
        if self.core is not None:
            ledger.add(self.core, name, activation=self.activation)
            return
        for parameter_name, parameter in self.named_parameters():
            role = "bias" if "bias" in parameter_name else "recurrent" if "_hh_" in parameter_name else "weight"
            ledger.add_parameter(
                parameter, f"{name}.{parameter_name}", kind="RNN", role=role, activation=self.activation
            )

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return all outputs and the last hidden state `[layers, batch, width]`."""
        if self.core is not None:
            if isinstance(self.core, nn.LSTM):
                out, (hidden, _) = self.core(x)
                return out, hidden
            out, hidden = self.core(x, state)
            return out, hidden
        input_weight, recurrent_weight = self.weight_ih_l0, self.weight_hh_l0
        input_bias, recurrent_bias = self.bias_ih_l0, self.bias_hh_l0
        assert isinstance(input_weight, Tensor)
        assert isinstance(recurrent_weight, Tensor)
        assert isinstance(input_bias, Tensor)
        assert isinstance(recurrent_bias, Tensor)
        act = ACTIVATIONS[self.activation or "tanh"]
        h = x.new_zeros(len(x), self.width) if state is None else state[0]
        drive = functional.linear(x, input_weight, input_bias)
        outs = []
        for t in range(x.shape[1]):
            h = act(drive[:, t] + functional.linear(h, recurrent_weight, recurrent_bias))
            outs.append(h)
        return torch.stack(outs, 1), h[None]


Batch = tuple[Tensor, Tensor]


def sequence_task(task: str, length: int) -> tuple[Callable[[int], Batch], int, int]:
    """Return (draw a batch, input width, classes); 0 classes: regression of one number."""

    def recall(batch: int) -> Batch:  # say, at the end, the first symbol
        symbols = torch.randint(SYMBOLS, (batch, length))
        return functional.one_hot(symbols, SYMBOLS).float(), symbols[:, 0]

    def adding(batch: int) -> Batch:  # add the two marked numbers
        numbers = torch.rand(batch, length)
        marks = torch.zeros(batch, length)
        first = torch.randint(length // 2, (batch, 1))
        second = torch.randint(length // 2, length, (batch, 1))
        marks.scatter_(1, first, 1.0).scatter_(1, second, 1.0)
        return torch.stack([numbers, marks], -1), (numbers * marks).sum(1, keepdim=True)

    def majority(batch: int) -> Batch:  # which of two symbols came more often
        symbols = torch.randint(2, (batch, length))
        return functional.one_hot(symbols, 2).float(), (symbols.float().mean(1) > 0.5).long()

    def frequency(batch: int) -> Batch:  # the frequency of a noisy wave
        target = torch.rand(batch, 1)
        t = torch.arange(length) * 0.2
        wave = (t * (0.5 + 2 * target) + 6 * torch.rand(batch, 1)).sin() + 0.1 * torch.randn(batch, length)
        return wave[..., None], target * 4 - 2

    def accumulate(batch: int) -> Batch:  # the sum of all inputs: long memory of every step
        x = torch.randn(batch, length, 1)
        return x, x.sum(1) / math.sqrt(length)

    def order(batch: int) -> Batch:  # which of two rare symbols came first
        y = torch.randint(2, (batch,))
        x = torch.zeros(batch, length, 3)
        early, late = torch.randint(length // 2, (batch,)), torch.randint(length // 2, length, (batch,))
        rows = torch.arange(batch)
        x[..., 2] = 0.1 * torch.randn(batch, length)
        x[rows, early, y], x[rows, late, 1 - y] = 1.0, 1.0
        return x, y

    def parity(batch: int) -> Batch:
        bits = torch.randint(2, (batch, length))
        return bits.float()[..., None] * 2 - 1, bits.sum(1) % 2

    def latch(batch: int) -> Batch:  # the sign of the first of many numbers, in noise
        x = 0.2 * torch.randn(batch, length, 1)
        x[:, 0] += torch.randint(2, (batch, 1)) * 2 - 1
        return x, (x[:, 0, 0] > 0).long()

    def lag(batch: int) -> Batch:  # the first number, said at the end
        x = torch.randn(batch, length, 1)
        return x, x[:, 0]

    def chaos(batch: int) -> Batch:  # the next value of a logistic map seen through noise
        value, seen = torch.rand(batch, 1), []
        for _ in range(length + 1):
            value = 3.7 * value * (1 - value)
            seen.append(value)
        return (torch.stack(seen[:-1], 1) - 0.6 + 0.02 * torch.randn(batch, length, 1)) * 3, (seen[-1] - 0.6) * 4

    def marked(batch: int) -> Batch:  # the one number that was marked
        x = torch.randn(batch, length, 2)
        x[..., 1] = 0.0
        chosen = torch.randint(length, (batch,))
        x[torch.arange(batch), chosen, 1] = 1.0
        return x, x[torch.arange(batch), chosen, :1]

    def maximum(batch: int) -> Batch:  # the largest number, above what is usual
        x = torch.randn(batch, length, 1)
        return x, (x.max(1).values - math.sqrt(2 * math.log(length)) + 0.5) * 2

    def brackets(batch: int) -> Batch:  # how deep the brackets are nested at the end: shallow or deep
        opened = torch.randint(2, (batch, length)) * 2 - 1
        depth = torch.zeros(batch)
        for t in range(length):
            depth = (depth + opened[:, t]).clamp_min(0)
        return opened.float()[..., None], (depth > math.sqrt(length / 2)).long()

    tasks: dict[str, tuple[Callable[[int], Batch], int, int]] = {
        "marked": (marked, 2, 0),
        "maximum": (maximum, 1, 0),
        "brackets": (brackets, 1, 2),
        "order": (order, 3, 2),
        "parity": (parity, 1, 2),
        "latch": (latch, 1, 2),
        "lag": (lag, 1, 0),
        "chaos": (chaos, 1, 0),
        "recall": (recall, SYMBOLS, SYMBOLS),
        "adding": (adding, 2, 0),
        "majority": (majority, 2, 2),
        "frequency": (frequency, 1, 0),
        "accumulate": (accumulate, 1, 0),
    }
    if task not in ("rows", "pixels"):
        return tasks[task]
    made = dataset("digits")
    width = 8 if task == "rows" else 1

    def image(batch: int) -> Batch:  # the last rows, or pixels, of a digit
        chosen = torch.randint(len(made.x), (batch,))
        return made.x[chosen].reshape(batch, -1, width)[:, -length:], made.y[chosen]

    return image, width, made.classes


def recurrent(
    ledger: Ledger,
    batch: int,
    *,
    task: str = "recall",
    length: int = 20,
    cell: str = "rnn-tanh",
    width: int = 32,
    layers: int = 1,
    init: str | None = None,
    gain: float = 1.0,
    input_scale: float = 1.0,
    target_scale: float = 1.0,
    forget_bias: float | None = None,
    bad_batch: tuple[int, float] | None = None,
) -> Program:
    """Reads a sequence and answers at its end. `init` and `gain` are of the recurrent matrix."""
    draw, inputs, classes = sequence_task(task, length)
    recurrence = Recurrence(cell, inputs, width, layers)
    recurrence.add_to_ledger(ledger, "rnn")
    ledger.initialize(init, gain, roles=("recurrent",))
    if forget_bias is not None:
        with torch.no_grad():
            for entry in ledger.entries:
                if entry.record.role == "bias":
                    entry.parameter[width : 2 * width] = forget_bias / 2
    head = ledger.add(nn.Linear(width, classes or 1), "head")
    eval_x, eval_y = draw(512)

    def forward(x: Tensor) -> Tensor:
        out: Tensor = head(recurrence(x * input_scale)[0][:, -1])
        return out

    def step_loss(step: int) -> Tensor:
        x, y = draw(batch)
        if bad_batch is not None and step == bad_batch[0]:
            x = x * bad_batch[1]
        out = forward(x)
        return functional.cross_entropy(out, y) if classes else functional.mse_loss(out, y * target_scale)

    def skill() -> float:
        out = forward(eval_x)
        return accuracy_skill(out, eval_y, classes) if classes else variance_skill(out, eval_y * target_scale)

    targets = None if classes else eval_y[:batch] * target_scale
    return Program(loss=step_loss, skill=skill, inputs=eval_x[:batch] * input_scale, targets=targets)


def recurrent_language_model(
    ledger: Ledger,
    batch: int,
    *,
    source: str = "topics",
    length: int = 32,
    cell: str = "lstm",
    width: int = 64,
    layers: int = 1,
    init: str | None = None,
    gain: float = 1.0,
    carry: bool = False,
) -> Program:
    """Predicts the next character. `carry` keeps the state from batch to batch (truncated backpropagation)."""
    text, alphabet = python_text(source)
    embedding = ledger.add(nn.Embedding(alphabet, 24), "embedding")
    recurrence = Recurrence(cell, 24, width, layers)
    recurrence.add_to_ledger(ledger, "rnn")
    ledger.initialize(init, gain, roles=("recurrent",))
    head = ledger.add(nn.Linear(width, alphabet), "head")
    state: list[Tensor | None] = [None]

    def logits(codes: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, last = recurrence(embedding(codes), hidden)
        return head(out), last

    def step_loss(step: int) -> Tensor:
        starts = torch.arange(batch) * (len(text) // (batch + 2)) + step * length % (len(text) // (batch + 2) - length)
        if not carry:
            starts = torch.randint(len(text) - 6000 - length, (batch,))
        codes = torch.stack([text[s : s + length + 1] for s in starts.tolist()])
        out, last = logits(codes[:, :-1], state[0])
        if carry:
            state[0] = last.detach()
        return functional.cross_entropy(out.flatten(0, 1), codes[:, 1:].flatten())

    return Program(loss=step_loss, skill=lambda: language_skill(lambda c: logits(c)[0], text, length))


def language_skill(logits: Callable[[Tensor], Tensor], text: Tensor, length: int) -> float:
    """Return how far the loss on the text's end is below the entropy of single characters, 1 for a loss of 0."""
    held = text[-5000:]
    count = (len(held) - 1) // length
    x = held[: count * length].reshape(count, length)
    y = held[1 : count * length + 1].reshape(count, length)
    loss = float(functional.cross_entropy(logits(x).flatten(0, 1), y.flatten()))
    entropy = unigram_entropy(text)
    return (entropy - loss) / entropy if math.isfinite(loss) else -1e9


def sequence_to_sequence(
    ledger: Ledger,
    batch: int,
    *,
    length: int = 10,
    cell: str = "gru",
    width: int = 48,
    attention: bool = False,
    init: str | None = None,
    gain: float = 1.0,
    embedding_scale: float = 1.0,
    reverse: bool = True,
) -> Program:
    """Encoder and decoder: "translates" a sentence into its reverse (or not) with each word replaced."""
    words = 10
    dictionary = torch.randperm(words)
    source_embedding = ledger.add(nn.Embedding(words, 16), "encoder.embedding")
    encoder = Recurrence(cell, 16, width)
    encoder.add_to_ledger(ledger, "encoder.rnn")
    target_embedding = ledger.add(nn.Embedding(words + 1, 16), "decoder.embedding")
    decoder = Recurrence(cell, 16, width)
    decoder.add_to_ledger(ledger, "decoder.rnn")
    ledger.initialize(init, gain, roles=("recurrent",))
    head = ledger.add(nn.Linear(2 * width if attention else width, words), "decoder.head")
    with torch.no_grad():
        source_embedding.weight.mul_(embedding_scale)

    def draw(count: int) -> Batch:
        x = torch.randint(words, (count, length))
        return x, dictionary[x.flip(1) if reverse else x]

    def forward(x: Tensor, y: Tensor) -> Tensor:
        memory, hidden = encoder(source_embedding(x))
        start = torch.full_like(y[:, :1], words)
        out, _ = decoder(target_embedding(torch.cat([start, y[:, :-1]], 1)), hidden)
        if attention:
            weights = torch.softmax(out @ memory.transpose(1, 2) / math.sqrt(width), -1)
            out = torch.cat([out, weights @ memory], -1)
        answer: Tensor = head(out)
        return answer

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw(batch)
        return functional.cross_entropy(forward(x, y).flatten(0, 1), y.flatten())

    eval_x, eval_y = draw(256)
    return Program(
        loss=step_loss,
        skill=lambda: accuracy_skill(forward(eval_x, eval_y).flatten(0, 1), eval_y.flatten(), words),
    )


class Block(nn.Module):
    """A transformer block: attention and a perceptron, normalized before (`pre`), after (`post`) or not at all."""

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        width: int,
        heads: int,
        norm: str,
        activation: str,
        residual: bool,
        causal: bool,
    ) -> None:
        super().__init__()
        self.heads, self.norm, self.residual, self.causal = heads, norm, residual, causal
        self.act = ACTIVATIONS[activation]

        def linear(part: str, inputs: int, outputs: int, act: str = "linear") -> nn.Linear:
            return ledger.add(nn.Linear(inputs, outputs), f"{name}.{part}", activation=act, branch=residual)

        self.norms = nn.ModuleList()
        if norm != "none":
            self.norms.append(ledger.add(nn.LayerNorm(width), f"{name}.norm1", branch=residual and norm == "pre"))
        self.qkv = linear("qkv", width, 3 * width)
        self.project = linear("project", width, width)
        if norm != "none":
            self.norms.append(ledger.add(nn.LayerNorm(width), f"{name}.norm2", branch=residual and norm == "pre"))
        self.up = linear("up", width, 4 * width, activation)
        self.down = linear("down", 4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        """Multi-head self-attention."""
        batch, time, width = x.shape
        q, k, v = (part.reshape(batch, time, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        answer: Tensor = self.project(out.transpose(1, 2).reshape(batch, time, width))
        return answer

    def forward(self, x: Tensor) -> Tensor:
        """Apply both parts."""
        parts: list[Callable[[Tensor], Tensor]] = [self.attend, lambda h: self.down(self.act(self.up(h)))]
        for index, part in enumerate(parts):
            h = part(self.norms[index](x) if self.norm == "pre" else x)
            x = x + h if self.residual else h
            if self.norm == "post":
                x = self.norms[index](x)
        return x


def transformer(
    ledger: Ledger,
    batch: int,
    *,
    task: str = "text",
    source: str = "topics",
    length: int = 32,
    width: int = 32,
    heads: int = 4,
    blocks: int = 2,
    norm: str = "pre",
    activation: str = "gelu",
    residual: bool = True,
    init: str = "default",
    gain: float = 1.0,
    embedding_scale: float | None = None,
    modulus: int = 11,
    zero_branches: bool = False,
) -> Program:
    """A transformer. `task`: `text` (language), `reverse`, `sort`, `sum` (modulo), `waves`, `digits` or `beats`."""
    text, alphabet = python_text(source) if task == "text" else (torch.zeros(1).long(), 10)
    vocabulary = alphabet if task == "text" else modulus if task == "sum" else 10
    classes = vocabulary
    patched = task in ("waves", "digits", "beats")
    if patched:
        made = dataset(task, inputs="std")
        classes = made.classes
        patches = ledger.add(nn.Linear(8, width), "patches")
        length = made.x.shape[1] // 8
    else:
        tokens = ledger.add(nn.Embedding(vocabulary, width), "tokens")
    positions = ledger.add(nn.Embedding(max(length, 3), width), "positions")
    body = [Block(ledger, f"block{i}", width, heads, norm, activation, residual, task == "text") for i in range(blocks)]
    last = ledger.add(normalization("layer", width), "norm") if norm == "pre" else None
    head = ledger.add(nn.Linear(width, classes), "head")
    ledger.initialize(init, gain)
    if embedding_scale is not None:
        for entry in ledger.entries:
            if entry.record.role == "embedding":
                initialize(entry.parameter, f"normal:{embedding_scale}")
    if zero_branches:
        ledger.rescale(lambda record: record.name.endswith(("project.weight", "down.weight")), 0.0)

    def forward(x: Tensor) -> Tensor:
        h = patches(x.reshape(len(x), length, 8)) if patched else tokens(x)
        h = h + positions(torch.arange(h.shape[1]))
        for block in body:
            h = block(h)
        out: Tensor = head(last(h) if last is not None else h)
        return out.mean(1) if patched else out

    def draw(count: int) -> Batch:
        if task == "text":
            starts = torch.randint(len(text) - 6000 - length, (count,))
            codes = torch.stack([text[s : s + length + 1] for s in starts.tolist()])
            return codes[:, :-1], codes[:, 1:]
        if task == "reverse":
            x = torch.randint(vocabulary, (count, length))
            return x, x.flip(1)
        if task == "sort":
            x = torch.randint(vocabulary, (count, length))
            return x, x.sort(1).values
        if task == "sum":
            x = torch.randint(modulus, (count, 2))
            return x, (x.sum(1, keepdim=True) % modulus).expand(-1, 2)
        chosen = torch.randint(len(made.x), (count,))
        return made.x[chosen], made.y[chosen]

    def step_loss(step: int) -> Tensor:  # noqa: ARG001
        x, y = draw(batch)
        out = forward(x)
        return functional.cross_entropy(out.reshape(-1, classes), y.reshape(-1))

    def skill() -> float:
        if task == "text":
            return language_skill(forward, text, length)
        x, y = (made.eval_x, made.eval_y) if patched else draw(512)
        return accuracy_skill(forward(x).reshape(-1, classes), y.reshape(-1), classes)

    return Program(loss=step_loss, skill=skill, inputs=draw(batch)[0] if patched else None)
