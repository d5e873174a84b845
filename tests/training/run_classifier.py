"""Probe or fine-tune in a process: python run_classifier.py RECIPE MODEL RUN_DIR [NODES RANK MASTER]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from swav_tf.plumbing.errors import SwavError
from swav_tf.recipe.classifier import FinetuneRecipe
from swav_tf.recipe.files import load_any_recipe
from swav_tf.training.classify import finetune, probe
from swav_tf.training.rendezvous import ClusterAddress

if __name__ == "__main__":
    recipe_file, model, run_dir, *cluster = sys.argv[1:]
    recipe = load_any_recipe(recipe_file)
    address = ClusterAddress(int(cluster[0]), int(cluster[1]), cluster[2]) if cluster else None
    try:
        job = finetune if isinstance(recipe, FinetuneRecipe) else probe
        job(recipe, model=model, run_dir=run_dir, cluster=address, quiet=True)
    except SwavError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
