"""The commands of `sparsyfed`: each module configures its parser, and imports what it needs when it runs."""
