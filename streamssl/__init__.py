"""The learning plane: methods, trainer, evaluation, the one command line."""
