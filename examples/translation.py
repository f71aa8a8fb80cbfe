"""Translates generated long sentences with a recurrent encoder and decoder (Sutskever et al. 2014).

Each clause has the order subject, verb, object in the source language, and object, verb, subject in the target
language, which has words of its own. Without options, training fails: the recurrent weights of rectified units expand
the gradient, which passes a long sentence twice, and nothing bounds it. `--scale 1` repairs it.

    python translation.py --steps 120
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradmedic

WORDS = 6
"""Number of subjects, of verbs and of objects."""
START = 3 * WORDS
CELLS = {"rnn": nn.RNN, "gru": nn.GRU}


def make_sentences(count: int, clauses: int) -> tuple[Tensor, Tensor]:
    """Return source and target sentences `[count, 3 * clauses]`."""
    kinds = torch.arange(3) * WORDS
    source = torch.randint(WORDS, (count, clauses, 3)) + kinds
    target = (3 * WORDS - 1 - source).flip(2)
    return source.flatten(1), target.flatten(1)


class Translator(nn.Module):
    """Reads the source sentence, then writes the target sentence from the last state."""

    def __init__(self, hidden: int, cell: str, scale: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(START + 1, hidden)
        settings = {"nonlinearity": "relu"} if cell == "rnn" else {}
        self.encoder = CELLS[cell](hidden, hidden, batch_first=True, **settings)
        self.decoder = CELLS[cell](hidden, hidden, batch_first=True, **settings)
        self.head = nn.Linear(hidden, START)
        if cell == "rnn":
            for name, parameter in self.named_parameters():
                if "weight_hh" in name:
                    nn.init.orthogonal_(parameter, gain=scale)

    def forward(self, source: Tensor, previous: Tensor) -> Tensor:
        """Return logits of the target's words, given those before each."""
        _, state = self.encoder(self.embedding(source))
        outputs, _ = self.decoder(self.embedding(previous), state)
        logits: Tensor = self.head(outputs)
        return logits


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=str.lower, choices=sorted(CELLS), default="rnn")
    parser.add_argument("--clip", type=float, default=None, help="largest norm of the gradient")
    parser.add_argument("--scale", type=float, default=1.8, help="factor of the recurrent weights; 1 is orthogonal")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--clauses", type=int, default=15, help="clauses of a sentence, of three words each")
    parser.add_argument("--lr", type=float, default=0.03, help="learning rate of SGD")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    model = Translator(arguments.hidden, arguments.cell, arguments.scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr)

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="translation")
    run.watch(model, optimizer)
    for _ in range(arguments.steps):
        source, target = make_sentences(arguments.batch_size, arguments.clauses)
        start = torch.full((arguments.batch_size, 1), START)
        logits = model(source, torch.cat([start, target[:, :-1]], 1))
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if arguments.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), arguments.clip)
        optimizer.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
