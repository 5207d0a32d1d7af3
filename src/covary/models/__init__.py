"""Networks: load them, choose which parameters may move, call them as functions of their weights."""
