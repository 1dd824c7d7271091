"""The Transformer for text: corpora, training, generation and translation, and their command line."""
