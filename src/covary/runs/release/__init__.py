"""A RUN before a release: rules, and the papers that machines and auditors read."""
