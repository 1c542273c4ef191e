"""The only room that turns names into objects: models, recipes, runs, instruments, experiments."""

from .atelier import Bench
from .instruments import open_instrument, open_measuring
from .opening import (
    DEFAULT_MODEL,
    PACKAGE,
    describe_model,
    families,
    family,
    find_model,
    judges,
    model_folders,
    models,
    open_clip,
    open_judge,
    open_painter,
    user_models,
)
from .reading import find_recipe, load_recipe, open_source, recipe_folders, recipes
from .sets import prepare_set
from .training import card_of, probe_training, train

__all__ = [
    "DEFAULT_MODEL",
    "PACKAGE",
    "Bench",
    "card_of",
    "describe_model",
    "families",
    "family",
    "find_model",
    "find_recipe",
    "judges",
    "load_recipe",
    "model_folders",
    "models",
    "open_clip",
    "open_instrument",
    "open_judge",
    "open_measuring",
    "open_painter",
    "open_source",
    "prepare_set",
    "probe_training",
    "recipe_folders",
    "recipes",
    "train",
    "user_models",
]
