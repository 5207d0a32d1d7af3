"""Numbers of texts: observables of answers, hidden states, groups, tokens, traces."""
