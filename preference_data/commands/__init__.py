"""What the subcommands of `make-preferences` do."""
