"""A character language model with a plain recurrent network, on the Python language reference.

Without options, training fails: the sequences are long, the learning rate is high, and no gradient is clipped.
`--clip 0.1` or `--lr 0.5` repairs it.

    python rnn_language_model.py --steps 200
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics  # text that ships with Python

import torch
from torch import nn

import gradmedic


class LanguageModel(nn.Module):
    """Predicts the next character from all before it."""

    def __init__(self, characters: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 32)
        self.rnn = nn.RNN(32, hidden, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch, time, character]` for tokens `[batch, time]`."""
        states, _ = self.rnn(self.embedding(tokens))
        logits: torch.Tensor = self.head(states)
        return logits


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=5.0, help="learning rate of SGD, reached after the warm-up")
    parser.add_argument("--warmup", type=int, default=100, help="steps over which the learning rate rises")
    parser.add_argument("--clip", type=float, default=None, help="clip the gradient to this norm")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--sequence-length", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    text = "".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    index = {character: i for i, character in enumerate(alphabet)}
    corpus = torch.tensor([index[character] for character in text])

    model = LanguageModel(len(alphabet), arguments.hidden)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=arguments.warmup)

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="rnn-language-model")
    run.watch(model, optimizer)
    window = torch.arange(arguments.sequence_length + 1)
    for _ in range(arguments.steps):
        starts = torch.randint(len(corpus) - arguments.sequence_length - 1, (arguments.batch_size, 1))
        batch = corpus[starts + window]
        logits = model(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if arguments.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.clip)
        optimizer.step()
        warmup.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
