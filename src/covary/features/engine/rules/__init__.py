"""One rule a kind of layer: its share of the gradient from what went in and what came back."""
