"""What the SDK may change in the training loop, if the owner allows it: clip the gradients, stop the training."""
