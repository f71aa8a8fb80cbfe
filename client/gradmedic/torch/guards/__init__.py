"""Guards of a training loop: they decide, before an optimizer changes the weights, whether it may."""
