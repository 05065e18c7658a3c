"""Learning plane: methods, training, evaluation, command line."""
