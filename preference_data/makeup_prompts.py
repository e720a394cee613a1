"""Instructions that go into data sets, so that data and task ask the same."""

SHAPES = (
    *("LIP_FULL_BASIC", "LIP_GRADIENT_CENTER", "LIP_FULL_GLOSS"),
    *("BLUSHER_CENTER_WIDE_BASIC", "BLUSHER_CHEEKBONE_LIFT", "BLUSHER_SUN_KISSED"),
    *("EYESHADOW_OVEREYE_FULL_BASIC", "EYESHADOW_LID_SPLIT", "EYESHADOW_CREASE", "EYESHADOW_OUTER_WING"),
)
"""Names of the renderer's shapes (`preference_data.people.makeup_shapes.SHAPES`, not imported here: that one imports torch)."""
MAKEUP = (
    "Which makeup does this face wear? Answer with a JSON list of up to three items, one for each kind of makeup you see, and nothing "
    'else: <answer>[{"shape": "...", "color": "#RRGGBB"}, ...]</answer>, or <answer>[]</answer> for a bare face. The shape is one of '
    f"{', '.join(SHAPES)}. The color is that of the product, not of the skin beneath it."
)
LIPS = (
    'Which lipstick does this face wear? Answer with its color alone: <answer>{"color": "#RRGGBB"}</answer>. The color is that of the '
    "product, not of the lips beneath it."
)
