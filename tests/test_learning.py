"That training works at all: a small network learns drawn cells."
import keras
import numpy as np

from bloodcell_nb.custom_cnn import custom_cnn
from bloodcell_nb.recipes import check_recipe
from bloodcell_nb.records import Run
from bloodcell_nb.splits import prepare
from bloodcell_nb.training import fit, predict


def test_a_network_learns(tmp_path):
    recipe = check_recipe({"notebook": "03_custom_cnn", "recipe": "learns",
                           "source": "synthetic:n=700", "out": str(tmp_path),
                           "filters": [16, 32, 64, 128], "dense_units": 128, "dropout": 0.0,
                           "head_dropout": 0.0, "schedule": "cosine",
                           "batch_size": 16, "learning_rate": 2e-3, "epochs": 20})
    splits = prepare(recipe)
    keras.utils.set_random_seed(0)
    network = custom_cnn((96, 96), 8, tuple(recipe.filters), recipe.dropout, recipe.dense_units,
                         recipe.head_dropout)
    fitted = fit(network, splits.balanced, splits.val, recipe, Run(recipe))
    accuracy = np.mean(predict(fitted.final, splits.test).argmax(axis=1) == splits.test.labels)
    assert accuracy > 0.6, f"{accuracy:.2f} of {len(splits.test)} cells; chance is {1 / 8:.2f}"
