"""The pieces that screens are made of. Each is told the model and draws it; none keeps state of the ring."""
