"""A RUN looked at as a pile: its cards, the mechanisms behind its flags, what somebody trusts of it."""
