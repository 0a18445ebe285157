"""Pictures for people: grids of images, bars with their intervals, curves, maps.

Used by cards, documentation and the command line alike. All are PNG files with a white background of their own, so
that they can be read on a dark page too; colour-blind readers tell the colours apart.
"""

from hf_dfml.utils.pictures.charts import (
    Growth,
    bar_chart,
    curves,
    growth_curves,
    heat_map,
    learning_curves,
    strip_chart,
)
from hf_dfml.utils.pictures.grids import class_rows, image_grid
from hf_dfml.utils.pictures.maps import feature_map, member_map, neighbour_maps

__all__ = [
    "Growth",
    "bar_chart",
    "class_rows",
    "curves",
    "feature_map",
    "growth_curves",
    "heat_map",
    "image_grid",
    "learning_curves",
    "member_map",
    "neighbour_maps",
    "strip_chart",
]
