"""ring: one language model, cut over several plain machines that pass each token round."""

__version__ = "0.1.0"
