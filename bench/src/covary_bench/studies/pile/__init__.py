"""What judging a pile together is worth, where, and what it costs: the figures of docs/pile.md."""
