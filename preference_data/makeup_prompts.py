"""Instructions that go into data sets, so that data and task ask the same."""

MAKEUP = (
    "Which makeup does this face wear? Answer with a JSON list of one to three items, one for each kind of makeup you see, and nothing "
    'else: <answer>[{"shape": "...", "color": "#RRGGBB"}, ...]</answer>. The color is that of the product, not of the skin beneath it.'
)
LIPS = (
    'Which lipstick does this face wear? Answer with its color alone: <answer>{"color": "#RRGGBB"}</answer>. The color is that of the '
    "product, not of the lips beneath it."
)
