"""The pile as a whole: what many inputs show together, judged together, over stored numbers and over a stream."""
