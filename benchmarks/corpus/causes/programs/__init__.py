"""The training scripts of the causes corpus, by split."""
