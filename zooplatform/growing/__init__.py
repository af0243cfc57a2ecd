"""Growing zoos: recipes in, populations of trained networks out."""

from __future__ import annotations

from zooplatform.growing.grow import GrowReport, grow
from zooplatform.growing.recipe import DataRecipe, Recipe, load_recipe

__all__ = ["DataRecipe", "GrowReport", "Recipe", "grow", "load_recipe"]
