"""A held pile in others' training loops, and Hugging Face's objects as inputs; each driven by the real library."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny
from covary.data.source import open_data
from covary.detector import Detector
from covary.errors import CovaryError
from covary.training import HeldPile
from covary.training.held_pile import undisturbed

lightning = pytest.importorskip("pytorch_lightning", reason="the extra `lightning` is not installed")
datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
SETTINGS = {"conformal": "split", "fpr": 0.1}


def few():
    """Some trusted digits, and a pile of which the second half is odd."""
    x, y = tiny.trusted()
    return (x[:80], y[:80]), np.concatenate([x[80:90], tiny.odd(x[90:100])])


def held(**more) -> HeldPile:
    trusted, pile = few()
    return HeldPile(trusted, pile, **{**SETTINGS, **more})


def data() -> torch.utils.data.TensorDataset:
    x, y = tiny.images()
    inputs = torch.from_numpy(x[:64]).float().div(255).unsqueeze(1)
    return torch.utils.data.TensorDataset(inputs, torch.from_numpy(y[:64]))


class Lit(lightning.LightningModule):
    """The tiny network with dropout, so that training draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = tiny.network()
        self.net.load_state_dict(tiny.state())
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        return self.net(self.dropout(x))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trained_by_lightning(*callbacks) -> tuple[Lit, object]:
    model = Lit()
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=list(callbacks),
        )  # fmt: skip
        trainer.fit(model, torch.utils.data.DataLoader(data(), batch_size=16, shuffle=True))
    return model, trainer


def test_lightning_trains_to_the_same_bits_with_and_without(tmp_path):
    pile = held(every=1, network=lambda module: module.net, out=tmp_path / "looks")
    judged, trainer = trained_by_lightning(pile.lightning())
    alone, _ = trained_by_lightning()
    for (name, left), right in zip(judged.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert [record["epoch"] for record in pile.history] == [0, 1]
    record = pile.history[-1]
    assert trainer.callback_metrics["covary/flag_rate"] == pytest.approx(record["flag_rate"])
    assert record["flag_rate"] >= 0.4  # the odd half
    assert record["cards"][0]["flagged"]
    assert (tmp_path / "looks" / "epoch-1" / "report.html").is_file()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_model_or_the_random_state_changes(fails):
    model = Lit().train()
    model.net[1].eval()  # a layer kept in another mode
    model.net[0].weight.requires_grad_(False)
    model.net[3].weight.grad = torch.ones_like(model.net[3].weight)
    pile = held(network=lambda module: module.net)
    if fails:
        pile.trusted = pile.trusted[0][:3]
    states = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002
    modes, weights = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    record = pile.judge(model, 0)
    assert ("failed" in record) == fails
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not model.net[0].weight.requires_grad
    assert torch.equal(model.net[3].weight.grad, torch.ones_like(model.net[3].weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "net.3.weight")
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_what_draws_inside_is_put_back():
    model = nn.Linear(2, 2)
    before = (random.getstate(), torch.get_rng_state())
    with undisturbed(model):
        assert random.random() + float(torch.rand(1)) + np.random.rand() > 0  # noqa: NPY002
        model.eval()
        model.weight.grad = torch.ones(2, 2)
    assert model.training
    assert model.weight.grad is None
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_epochs_between_looks():
    assert [epoch for epoch in range(7) if held(every=3).due(epoch)] == [2, 5]
    with pytest.raises(CovaryError, match="every is 0"):
        held(every=0)


class ForTrainer(nn.Module):
    """The tiny network as transformers' Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny.network()
        self.net.load_state_dict(tiny.state())

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"logits": logits, **({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})}


@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer_logs_each_look(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")
    pile = held(network=lambda model: model.net)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=32, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, learning_rate=1e-4,
    )  # fmt: skip
    rows = [{"x": x, "labels": int(y)} for x, y in data()]
    trainer = transformers.Trainer(ForTrainer(), arguments, train_dataset=rows, callbacks=[pile.transformers()])
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "covary/flag_rate" in entry]
    assert [entry["covary/flag_rate"] for entry in logged] == [record["flag_rate"] for record in pile.history]
    assert [record["epoch"] for record in pile.history] == [0, 1]
    assert trainer.model.training


# Hugging Face's objects ----------------------------------------------------------------------------------------------


def test_a_dataset_of_images_is_what_its_arrays_are(fitted):
    (x, y), pile = few()
    names = [f"digit {i}" for i in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    pictures = [Image.fromarray(one) for one in x]
    held_set = datasets.Dataset.from_dict({"image": pictures, "label": y.tolist()}, features=features)
    source = open_data(held_set)
    assert source.class_names == names
    np.testing.assert_array_equal(source.y, y)
    np.testing.assert_array_equal(fitted.score(held_set).score, fitted.score(x).score)
    assert len(pile)


def test_splits_and_streams_are_refused_in_words():
    table = datasets.Dataset.from_dict({"x": [[0.5, 1.0]] * 3})
    assert next(open_data(table).batches(3)).x.shape == (3, 2)
    with pytest.raises(CovaryError, match=r"pass data\['train'\]"):
        open_data(datasets.DatasetDict({"train": table}))
    with pytest.raises(CovaryError, match="a map-style torch Dataset"):
        open_data(table.to_iterable_dataset())


def test_a_pipeline_is_judged_by_its_model_and_texts_may_be_a_dataset():
    transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")
    import texts

    model = texts.encoder("sequence")
    pipe = transformers.pipeline("text-classification", model=model.module, tokenizer=model.tokenizer)
    rows = [{"id": one["id"], "prompt": one["prompt"]} for one in texts.records(24)]
    detector = Detector(pipe, conformal="split", fpr=0.2).fit(datasets.Dataset.from_list(rows))
    same = Detector(model, conformal="split", fpr=0.2).fit(rows)
    np.testing.assert_array_equal(detector.score(rows[:6]).score, same.score(rows[:6]).score)
    assert detector.settings.kind == "text"

    class Images:
        task = "object-detection"

    from covary.text.models.pipelines import is_pipeline, of_pipeline

    assert not is_pipeline(Images())
    with pytest.raises(CovaryError, match="mean=, std=, transform="):
        of_pipeline(Images())
