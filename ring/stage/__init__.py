"""What one machine computes: its layers, its KV cache and, on the last stage, the sampled token."""
