"""One script a question; none is imported by the rest."""
