"""Fine-tuning as a job: killed, stopped, over two replicas."""

import json
import signal

import numpy as np
import pytest

from swav_tf.recipe.classifier import FinetuneRecipe
from swav_tf.recipe.files import save_recipe
from swav_tf.training.checkpointing import StoppedBySignal
from swav_tf.training.classifier_folder import load_classifier
from swav_tf.training.finetune import finetune
from tests.classifiers import tiny_classifier_recipe
from tests.training.runs import (
    CLASSIFIER,
    StopAfter,
    assert_same_bits,
    finish,
    lines,
    metrics,
    newest,
    start,
    wait_until,
)


# Bugs caught: momentum, moving averages, step or best epoch missing from a checkpoint; images that come twice after
# a mid-epoch resume; a validation that is written twice or counts towards the wrong epoch.
def test_killed_mid_epoch_ends_with_the_same_bits(tmp_path, pretrained):
    recipe = tiny_classifier_recipe(
        FinetuneRecipe, train__epochs=4, train__batch_size=32, checkpoint__every_minutes=0.002
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    a, b = tmp_path / "a", tmp_path / "b"
    undisturbed, killed = (start(CLASSIFIER, tmp_path / "recipe.yaml", pretrained, run) for run in (a, b))
    wait_until(lambda: len(lines(b)) >= 75, killed)  # in the second epoch
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    finish(undisturbed, start(CLASSIFIER, tmp_path / "recipe.yaml", pretrained, b))
    summaries = [json.loads((run / "summary.json").read_text()) for run in (a, b)]
    assert 0 < summaries[1]["resumed_from_step"] < 4 * 44
    assert_same_bits(newest(a, "finetune"), newest(b, "finetune"))
    assert metrics(a) == metrics(b)
    assert summaries[0]["last"] == summaries[1]["last"]
    assert summaries[0]["best"] == summaries[1]["best"]


# Bugs caught: replicas that are asked for and not made, a run that is bound to its number of replicas, a backbone
# that stays as it was, figures that belong to another model than the one that is saved.
def test_two_replicas_stop_and_one_goes_on(tmp_path, pretrained):
    def recipe(replicas):
        return tiny_classifier_recipe(
            FinetuneRecipe,
            train__logical_cpus=replicas,
            train__strategy="mirrored" if replicas == 2 else "one_device",
        )

    with pytest.raises(StoppedBySignal, match="after step 5"):
        finetune(recipe(2), model=pretrained, run_dir=tmp_path, quiet=True, callbacks=[StopAfter(4)])
    first = newest(tmp_path, "finetune")
    result = finetune(recipe(1), model=pretrained, run_dir=tmp_path, quiet=True)
    assert (result.summary["resumed_from_step"], result.summary["steps"]) == (5, 22)
    names = [name for name in first.arrays if name.startswith("backbone/")]
    assert all((first.arrays[name] != newest(tmp_path, "finetune").arrays[name]).any() for name in names)
    loaded, _, facts = load_classifier(tmp_path)
    assert facts.class_names == tuple("0123456789")
    for one, other in zip(result.model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


# Bug caught: a comparison from scratch that begins with the pretrained weights, or with the same seed but others.
def test_from_scratch_begins_at_random(tmp_path, pretrained):
    recipe = tiny_classifier_recipe(FinetuneRecipe, train__epochs=1, train__batch_size=700)
    results = [
        finetune(recipe, model=model, run_dir=tmp_path / str(i), from_scratch=scratch, quiet=True)
        for i, (model, scratch) in enumerate([(pretrained, True), (pretrained, True), (pretrained, False)])
    ]
    losses = [result.summary["train_loss_first"] for result in results]
    assert losses[0] == losses[1] != losses[2]
    assert [result.summary["origin"]["weights"] for result in results] == ["random", "random", "pretrained"]
