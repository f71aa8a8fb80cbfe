"""Guards: what the SDK may do inside a torch training loop when its owner allows it."""
