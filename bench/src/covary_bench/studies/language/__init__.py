"""Questions about language models."""
