"""Before a ring runs: checkpoints, shards, where to cut, and the pocket model. Imports nothing of `ring` or `tui`."""
