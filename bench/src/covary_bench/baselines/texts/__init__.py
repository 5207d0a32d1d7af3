"""Baselines on texts: what a detector of answers has to beat, each on the same trusted and query texts.

By what they look at:
    the answer's probabilities   completion NLL, mean token probability, ConfGuard
    hidden states                Mahalanobis, KNN, layer fingerprints, VAE, our layer profile
    words alone                  completion text, prompt text
    the prompt alone             LCF, quantum entropy, Attention Tracker, perplexity, length (`PROMPT_BASELINES`)
    perturbed weights            the published method
    gradients                    gradient norm, each part of the combined score alone
"""

from __future__ import annotations

from covary_bench.baselines.gradient_norm import gradient_norm
from covary_bench.baselines.mahalanobis_layers import by_layer
from covary_bench.baselines.material import Baseline
from covary_bench.baselines.parts import part_alone
from covary_bench.baselines.profile_activations import profile_on_activations
from covary_bench.baselines.texts.activation_vae import activation_vae
from covary_bench.baselines.texts.attention_tracker import attention_tracker
from covary_bench.baselines.texts.completion_nll import mean_probability, two_sided
from covary_bench.baselines.texts.confguard import confguard
from covary_bench.baselines.texts.knn_by_layer import knn_by_layer
from covary_bench.baselines.texts.layer_fingerprints import layer_fingerprints
from covary_bench.baselines.texts.material import Answered, Chain, TextMaterial
from covary_bench.baselines.texts.prompt_length import prompt_length
from covary_bench.baselines.texts.prompt_perplexity import prompt_perplexity
from covary_bench.baselines.texts.published import published
from covary_bench.baselines.texts.quantum_entropy import quantum_entropy
from covary_bench.baselines.texts.text_alone import completion_text, prompt_text

# name -> score of the queries; adding one is one file and one line.
TEXT_BASELINES: dict[str, Baseline] = {
    "completion NLL": Baseline(two_sided),
    "mean token probability": Baseline(mean_probability),
    "ConfGuard": Baseline(confguard),
    "gradient norm": Baseline(lambda m: gradient_norm(m.queries), "gradients"),
    "functional part": Baseline(lambda m: part_alone(m, "functional"), "gradients"),
    "latent part": Baseline(lambda m: part_alone(m, "latent")),
    "confidence part": Baseline(lambda m: part_alone(m, "confidence")),
    "profile on activations": Baseline(profile_on_activations),
    "Mahalanobis by layer": Baseline(lambda m: by_layer(m.on_states(), 1)),
    "Mahalanobis by layer two-sided": Baseline(lambda m: by_layer(m.on_states(), 2)),
    "KNN by layer": Baseline(knn_by_layer),
    "layer fingerprints": Baseline(layer_fingerprints),
    "activation VAE": Baseline(activation_vae),
    "completion text": Baseline(completion_text),
    "prompt text": Baseline(prompt_text),
    "published (mean Pearson)": Baseline(lambda m: published(m, "cosine", "mean"), "chain"),
    "published (max Pearson)": Baseline(lambda m: published(m, "cosine", "max"), "chain"),
    "published (mean CCC)": Baseline(lambda m: published(m, "ccc", "mean"), "chain"),
    "published (max CCC)": Baseline(lambda m: published(m, "ccc", "max"), "chain"),
}

# Of prompts alone, before anything is answered: `log_p` are the prompt's own, `@ answer` its states' mean.
PROMPT_BASELINES: dict[str, Baseline] = {
    "LCF": Baseline(lambda m: layer_fingerprints(m, ("anchor",))),
    "LCF, prompt and last token": Baseline(layer_fingerprints),
    "Mahalanobis, last token": Baseline(lambda m: by_layer(m.on_states("anchor"), 1)),
    "Mahalanobis, prompt": Baseline(lambda m: by_layer(m.on_states("answer"), 1)),
    "quantum entropy": Baseline(quantum_entropy),
    "Attention Tracker": Baseline(attention_tracker),
    "prompt perplexity": Baseline(prompt_perplexity),
    "prompt text": Baseline(prompt_text),
    "prompt length": Baseline(prompt_length),
}

__all__ = ["PROMPT_BASELINES", "TEXT_BASELINES", "Answered", "Baseline", "Chain", "TextMaterial"]
