"""Lightning glue: callbacks, strategies, the command line."""
