"""A character language model with a post-norm transformer, as in the original paper, but without warm-up.

Without options, training fails: with normalization behind each block, the first steps of Adam at a high learning rate
change the upper layers so much that the model never learns. `--lr 0.0005` repairs it.

    python post_norm_transformer.py --steps 200
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics  # text that ships with Python

import torch
from torch import nn

import gradmedic


class Transformer(nn.Module):
    """Predicts the next character from those before it."""

    def __init__(self, characters: int, width: int, depth: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, norm_first=False, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, characters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch, time, character]` for tokens `[batch, time]`."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        states = self.encoder(self.embedding(tokens) + self.position, mask=mask, is_causal=True)
        logits: torch.Tensor = self.head(states)
        return logits


def main() -> None:
    """Train and report to gradmedic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate of Adam")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--sequence-length", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    text = "".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    index = {character: i for i, character in enumerate(alphabet)}
    corpus = torch.tensor([index[character] for character in text])

    model = Transformer(len(alphabet), arguments.width, arguments.depth, arguments.sequence_length)
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr)

    run = gradmedic.init(project="examples", config=vars(arguments), trainable="post-norm-transformer")
    run.watch(model, optimizer)
    window = torch.arange(arguments.sequence_length + 1)
    for _ in range(arguments.steps):
        starts = torch.randint(len(corpus) - arguments.sequence_length - 1, (arguments.batch_size, 1))
        batch = corpus[starts + window]
        logits = model(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        run.log(loss=loss)
    run.finish()


if __name__ == "__main__":
    main()
