"""Averages Keras models as articles on the subject show it: all models in memory, get_weights().

    python article.py OUTPUT CONFIG INPUT...

INPUTs that are `.keras` archives are loaded as models; for `.weights.h5` files the model is rebuilt
from CONFIG, a `config.json`, each time.
"""

import json
import sys
from pathlib import Path

import keras


def load(path: str, config: str) -> keras.Model:
    """The model of a checkpoint."""
    if path.endswith(".keras"):
        return keras.saving.load_model(path, compile=False)
    model = keras.saving.deserialize_keras_object(json.loads(Path(config).read_text("utf-8")))
    model.load_weights(path)
    return model


def main(output: str, config: str, *inputs: str) -> None:
    """Loads all models, sums their weights and saves a model with the means."""
    models = [load(path, config) for path in inputs]
    sums = models[0].get_weights()
    for model in models[1:]:
        sums = [total + values for total, values in zip(sums, model.get_weights(), strict=True)]
    models[0].set_weights([total / len(models) for total in sums])
    if output.endswith(".keras"):
        models[0].save(output)
    else:
        models[0].save_weights(output)


main(*sys.argv[1:])
