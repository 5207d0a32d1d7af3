"""OpenAI's chat completions in front of a language model of one's own, every answer under guard."""
