"""Recalls the first symbol of a long sequence with a gated recurrent cell.

Without options, training fails: with small initial weights the gates are half open, so that each time step and each
layer loses half of the state and of the gradient. `--initialization orthogonal` repairs it.

    python long_recall.py --steps 150
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradmedic

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


class Recaller(nn.Module):
    """Reads symbols, and names the first one at the end."""

    def __init__(self, symbols: int, hidden: int, cell: str, layers: int, initialization: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols + 1, hidden)
        self.cell = CELLS[cell](hidden, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, symbols)
        for name, parameter in self.cell.named_parameters():
            if not name.startswith("weight"):
                continue
            for gate in parameter.data.chunk(len(parameter) // hidden):
                if initialization == "orthogonal":
                    nn.init.orthogonal_(gate)
                else:
                    nn.init.normal_(gate, std=0.03)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return logits of the first symbol."""
        outputs, _ = self.cell(self.embedding(sequence))
        logits: Tensor = self.head(outputs[:, -1])
        return logits


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=sorted(CELLS), default="gru")
    parser.add_argument("--initialization", choices=("small", "orthogonal"), default="small")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--symbols", type=int, default=4)
    parser.add_argument("--length", type=int, default=25, help="symbols of a sequence")
    parser.add_argument("--hidden", type=int, default=24)
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate of SGD")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    model = Recaller(arguments.symbols, arguments.hidden, arguments.cell, arguments.layers, arguments.initialization)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9)

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="long-recall")
    run.watch(model, optimizer)
    for _ in range(arguments.steps):
        first = torch.randint(arguments.symbols, (arguments.batch_size,))
        blanks = torch.full((arguments.batch_size, arguments.length - 1), arguments.symbols)
        loss = functional.cross_entropy(model(torch.cat([first[:, None], blanks], 1)), first)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
