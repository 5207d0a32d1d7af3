"""Language models: the same verdict on prompts and completions, through the same narrow waist.

By what they do
    records         JSONL, parquet and plain text -> prompts, completions, messages
    pretrained      a local folder in Hugging Face's format (and an adapter) -> a network, a tokenizer and its task
    tokens          texts -> token ids, positions of the answer, padded batches
    completions     the model's own greedy answers
    answers         one number per answer, and the same per token
    extractor       batches of texts -> `Rows`
    traces          the same along draws of the weights (sampled estimators)
    groups          what takes the place of the predicted class
    inputs          what `Detector` asks of texts: opened, answered, grouped, shown, kept
    token_evidence  which tokens of an answer trusted texts account for least
"""
