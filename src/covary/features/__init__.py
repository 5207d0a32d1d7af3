"""Network and batch -> Rows, by gradients at w* or along draws of the weights."""
