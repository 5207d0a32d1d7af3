"""Language models: from folders, from GGUF files, out of pipelines."""
